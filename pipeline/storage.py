"""Objects under one root, on any fsspec filesystem: `file://`, `memory://`, `s3://`, `gs://`, `az://`.

Exclusive creation is the only lock anyone gets: it is a hard link on a local disk and a conditional PUT on an object
store, never a rename. A reader sees a whole object or none.
"""
