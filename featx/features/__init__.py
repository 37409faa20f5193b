"""The cache: one HDF5 file of features, written once and checked whenever it is opened.

    lock      one writer per output
    splits    validation images where neither source nor file says which
    contents  contents of images by their hashes: numbered, found among rows, a set as text
    journal   the rows of an extraction, safe as soon as they are appended
    records   how the journal lies on the disk, and which numbers a row may hold
    publish   the rows of file and journal under one numbering; from these to the next file
    columns   the columns as they are written: shapes, chunks, and the bytes they take
    file      the reader
    shown     the file as lines, in a notebook, and as a frame
    hdf5      opening a file with HDF5, and reading its columns
    schema    columns, types and layout of a feature file, checked before anything is read
    blocks    reading rows block by block or one by one, where they do not fit into memory
    stored    one column of one file, whose chunks are read past HDF5
    parts     a feature file in parts: the plan they share, and the index that completes them
    part_columns  columns of several files as one
    settle    what is decided over all parts: splits, groups, duplicates; the index
    skipped   an image that was left out
    marks     a table of findings as it was marked, the images that it is of, and manifests of them
    vectors   vectors by the content of their images, for images that a caller has
    given     feature files of rows that a caller has: in memory, or published
    nearest   the rows that are nearest to some vectors
    search    the nearest rows of each row, exact or by faiss
    storage   every byte of file and journal that is written goes through here

The only place that touches h5py.
"""
