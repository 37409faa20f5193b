"""Images: sources of samples, safe decoding, and preprocessing to the backbone's crop.

    sources/     where samples come from: classes, splits, stable ids
    decode       one encoded image → RGB pixels, by one set of rules
    containers   the format of a file, its metadata, and what it may cost
    rgb          modes, depths and transparency → RGB; TIFFs that Pillow would misread
    preprocess   the spec of resize, crop and arithmetic; the geometry
    views        augmented versions of an image, drawn from its content and a number
    given        images as a caller gives them: paths, bytes, PIL images, arrays
    thumbnails   small pictures of images, for pages and notebooks
    alike        whether two images show the same picture, by their pixels
    quality      pictures of one colour, with next to nothing on them, or blurred
    reading      a source's images, read and decoded ahead by threads, one per core
    edge_cases   images that are hard to preprocess, made from ordinary ones, for proofs

Uses numpy and Pillow only, so that predicting needs nothing more.
"""
