// Package charts holds the Helm charts and embeds what programs print or install without Helm: the custom resource
// definitions. It has no logic beyond reading its own files.
package charts

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:embed keelson/crds/*.yaml
var crds embed.FS

// CRDs returns the custom resource definitions of trust.keelson.io as YAML documents, ordered by file name. They are
// generated from policy-sync/api/v1alpha1.
func CRDs() ([][]byte, error) {
	names, err := fs.Glob(crds, "keelson/crds/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("charts: %w", err)
	}
	documents := make([][]byte, 0, len(names))
	for _, name := range names {
		content, err := crds.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("charts: %w", err)
		}
		documents = append(documents, content)
	}
	return documents, nil
}
