"""TEMPORARY by the lead, to be overwritten by part E."""
class TextCheck:
    def __init__(self, mask, box): pass
    def look(self, frame): return None
    def end(self): return None
