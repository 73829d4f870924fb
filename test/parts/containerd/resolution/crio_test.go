package resolution

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
)

// FuzzCRIO: whatever CRI-O's image library chooses from an index, through indexes in it, is among what the checker judges.
func FuzzCRIO(f *testing.F) {
	for i := range uint64(400) {
		f.Add(i, uint8(i))
	}
	f.Fuzz(func(t *testing.T, seed uint64, which uint8) {
		m := &maker{Rand: rand.New(rand.NewPCG(seed, 2)), store: store{}}
		root := m.index(t, 3)
		node := platforms.MustParse(nodes[int(which)%len(nodes)])
		asked := &types.SystemContext{OSChoice: node.OS, ArchitectureChoice: node.Architecture, VariantChoice: node.Variant}
		chosen := root.Digest
		for {
			var doc struct {
				Manifests json.RawMessage `json:"manifests"`
			}
			if err := json.Unmarshal(m.store[chosen], &doc); err != nil {
				t.Fatal(err)
			}
			if doc.Manifests == nil {
				break
			}
			index, err := manifest.OCI1IndexFromManifest(m.store[chosen])
			if err != nil {
				t.Fatal(err)
			}
			var next digest.Digest
			if next, err = index.ChooseInstance(asked); err != nil {
				return // CRI-O starts nothing
			}
			chosen = next
		}
		got, err := candidates(t, m.store.layout(t), root.Digest, node)
		if err != nil && strings.Contains(err.Error(), "another name of a platform") {
			return // refused
		}
		if !slices.Contains(got, chosen.String()) {
			t.Errorf("CRI-O starts %s on %s, the checker judges %v (%v)\n%s", chosen, platforms.Format(node), got, err, m.store[root.Digest])
		}
	})
}
