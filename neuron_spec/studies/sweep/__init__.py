"""How do scores follow k, or depth?"""
