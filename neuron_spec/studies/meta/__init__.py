"""Does training by episodes make a model that a few sentences adapt?"""
