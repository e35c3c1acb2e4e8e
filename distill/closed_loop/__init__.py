"""CLDyN's closed loop: training the steering of a frozen student by what frozen task networks say of its pictures.

Source: "CLDyN" (CVPR 2026, arXiv 2604.08924). The loop needs students and task networks, which never import each
other, so it lives in `distill`; what it trains is `duskfuse.students.steering`. It is no phase of a recipe: gradients
of several tasks become one before any optimiser sees them, and every loss is compared with that on the student's own
picture.
"""
