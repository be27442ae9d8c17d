"""How many sentences does a new direction need?"""
