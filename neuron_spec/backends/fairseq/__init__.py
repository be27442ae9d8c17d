"""fairseq: reading its checkpoints and data, running its commands and models. The only importer of fairseq besides
what fairseq itself imports from --user-dir.
"""
