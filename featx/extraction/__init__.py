"""From a source's images to rows of the journal: what is to be done, the backbone, the workers.

options         what a user chooses, and what it resolves to
settings        what a row depends on; compared with the file and the journal
resume          what earlier runs left at an output
plan            the images of a source compared with the rows there are
splitting       the splits of a source's images, once their contents are known
calibration     the images that int8 is calibrated with
backbone        the network, built when it is first needed
pipeline        images through decoding, backbone and journal, in order
batches, crops, image, deduplication    the parts of that way
bad_images      the account of images that were not used
profile         where the time went
"""
