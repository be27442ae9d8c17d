"""What do systems score, and what do they cost?"""
