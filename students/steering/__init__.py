"""Steering a frozen student by what a task network sees in its pictures (CLDyN, CVPR 2026, arXiv 2604.08924).

It lives among the students because it replaces features inside of one and becomes a part of the file that ships. It
takes a task network's features as a plain tensor and imports none; the loop that trains it is in
`duskfuse.distill.closed_loop`.
"""
