"""How far do the sets overlap, and does overlap follow the kinship of languages?"""
