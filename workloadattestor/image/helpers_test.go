package image_test

import "github.com/google/go-containerregistry/pkg/v1/types"

// taggable is a manifest of any bytes.
type taggable []byte

func (b taggable) RawManifest() ([]byte, error)        { return b, nil }
func (b taggable) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
