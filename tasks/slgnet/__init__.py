"""SLGNet (arXiv 2601.02249): a frozen vision transformer with structure and language adapters for two cameras.

Written from the article; docs/detectors.md says where it is corrected and what was measured.
"""
