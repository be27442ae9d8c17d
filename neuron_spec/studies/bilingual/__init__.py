"""The bilingual baseline: what does a model per direction do?"""
