"""Prefect flows over the other packages, the deployments that serve them, and the stages of dvc.yaml.

Only this package imports Prefect, and only when a verb runs. A flow adds nothing that the plain functions do not do:
`usdata ingest busi`, the flow `ingest` and the DVC stage `ingest@busi` write the same bytes.
"""
