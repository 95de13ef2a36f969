"""Between messages and what the server computes with: the only package that knows both.

Nothing that arrives is trusted: sizes and counts are compared before anything is allocated.
"""
