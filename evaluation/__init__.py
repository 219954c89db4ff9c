"""What came out: metrics and pictures. Arrays in, numbers and figures out.

scikit-learn, scipy and matplotlib do the work.
"""
