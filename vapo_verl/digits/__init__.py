"""The digits world: grids of coloured handwritten digits, with questions and claims of known truth.

Real scans (UCI handwritten digits, shipped with scikit-learn), laid out so that every grid cell is
exactly one merged token of a Qwen2.5-VL vision tower. It feeds the end-to-end tests and the demo.
"""
