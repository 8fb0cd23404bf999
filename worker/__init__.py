"""The GPU process: prepares sides, computes cells, writes PNGs. Imports neither flask nor api."""
