"""The adapter baselines: what do small layers of their own do for directions?"""
