// Package image says which image a container was started from and who signed it.
//
// A runtime reports what it started by a digest that may be an image's config, its manifest or an index, and by a
// tag that may have moved. Check binds that digest: it fetches documents from the image's own registry or from OCI
// layouts, hashes them, and finds the manifests whose config is what runs. Those manifests' digests are the image's;
// a signature counts when its payload names one of them, or an index that lists one of them.
//
// # Why the config digest is the identity
//
// The config lists the hashes of the image's uncompressed layers (OCI image spec, config.md, rootfs.diff_ids), which
// the runtime checks when it unpacks. So two manifests with one config are one image content (packed differently),
// and a signature over either vouches for what runs. Nothing else is taken from one document to another.
//
// # Who controls the inputs
//
// The image's author controls manifest, config, tag and registry, and so everything that is fetched; digests bind
// the bytes, strict parsing and size limits bound what they can do. The signer controls the payload. Names of
// images come from pod authors: only registries that the configuration lists are ever asked.
package image
