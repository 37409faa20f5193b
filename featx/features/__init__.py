"""The cache: one HDF5 file of features, written once and checked whenever it is opened.

    journal   where rows wait until the extraction is complete
    publish   from the journal to the file
    file      the schema and the reader

The only place that touches h5py.
"""
