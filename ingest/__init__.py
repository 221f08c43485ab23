"""From someone's files to clean 256×256 samples in a lake. Imports usdata only."""
