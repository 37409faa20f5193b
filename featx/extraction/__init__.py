"""From a source's images to rows of the journal.

options      of the user, resolved, and the report
resume       file and journal of previous runs, and the settings that rows depend on
parts        one part of an extraction: a range of the plan that all parts share
plan         the images of a source compared with the rows there are
space        size of rows and views: logged, and compared with the free disk space
splitting    the splits of a source's images, once their contents are known
backbone     the network, built when it is first needed; int8 calibrated with the source's images
batches      images of a batch read, and rows computed, in this process or another
pipeline     images through decoding, deduplication, backbone and journal, in order
crops        encoded images of a batch to the crops that the backbone sees
faster       a line about settings that would make a long run faster, measured in it
run          one output: what it lacks, the rows to make, the file to publish
by_content   features of images that a caller has, each computed once
committer    numbered work on many workers, whose results leave in order
workers      what a worker of a cluster does
nodes        a connection to a Ray cluster; its nodes' versions and processors
tokens       the Ray clusters of this machine, and those that ask for a token
actors       workers as Ray's actors: started, given work, replaced
cluster      extraction by a Ray cluster
part_rows    features of parts that a Ray cluster reads for training
together     outputs of several layers, whose rows are made at once
bad_images   images that were not used, as an error or a report
"""
