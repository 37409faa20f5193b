"""The cache: one HDF5 file of features, written once and checked whenever it is opened.

    lock      one writer per output
    existing  the rows there are: those of the file, then those of the journal
    splits    which images are for validation where neither source nor file says, by
    held_out  the choice among units of images that stay together
    journal   the log of an extraction: rows are safe in it as soon as they are made
    records   how the log lies on the disk
    values    which numbers a row may hold
    publish   from the log to the file
    file      the reader, which opens what has the
    schema    columns, types and layout of a feature file
    structure what HDF5 reads of a file before it can be asked, looked at on its bytes
    blocks    reading features block by block, where they do not fit into memory
    storage   every byte that is written goes through here

The only place that touches h5py.
"""
