package image_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// entry is one line of an index that a test writes.
type entry struct {
	of        app    // an image, or
	index     string // the digest of an index
	platform  string // "os/architecture[/variant]"; none when empty
	mediaType types.MediaType
	digest    string // instead of the image's or the index's own
}

func (e entry) descriptor(t *testing.T) map[string]any {
	t.Helper()
	out := map[string]any{"mediaType": types.OCIManifestSchema1, "digest": e.of.manifest, "size": 1}
	if e.index != "" {
		out["mediaType"], out["digest"] = types.OCIImageIndex, e.index
	}
	if e.mediaType != "" {
		out["mediaType"] = e.mediaType
	}
	if e.digest != "" {
		out["digest"] = e.digest
	}
	if e.platform != "" {
		p, err := v1.ParsePlatform(e.platform)
		if err != nil {
			t.Fatal(err)
		}
		out["platform"] = p
	}
	return out
}

// pushEntries pushes an index with these entries, and the images in it.
func (f *fixture) pushEntries(entries ...entry) string {
	f.t.Helper()
	list := []any{}
	for _, e := range entries {
		if e.of.image != nil {
			f.push(f.repo+"@"+e.of.manifest, e.of.image)
		}
		list = append(list, e.descriptor(f.t))
	}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": list})
	if err != nil {
		f.t.Fatal(err)
	}
	digest := workloadclaim.IndexDigestOf(raw).String()
	f.raw.Store(digest, raw)
	return digest
}

// TestThreat15_AnIndexIsAcceptedOnlyIfAllThatItCanStartIs: containerd and CRI-O choose an image from an index each by rules of
// their own. Whoever may push, but has no key, must not find an index from which one of them starts an unsigned image.
func TestThreat15_AnIndexIsAcceptedOnlyIfAllThatItCanStartIs(t *testing.T) {
	nested := func(f *fixture, of ...entry) entry {
		return entry{index: f.pushEntries(of...), platform: "linux/amd64"}
	}
	cases := map[string]func(f *fixture, good, bad app) []entry{
		"a nested index before": func(f *fixture, good, bad app) []entry {
			return []entry{nested(f, entry{of: bad, platform: "linux/amd64"}), {of: good, platform: "linux/amd64"}}
		},
		"a nested index behind": func(f *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, nested(f, entry{of: bad, platform: "linux/amd64"})}
		},
		"a nested index without platform": func(f *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {index: f.pushEntries(entry{of: bad})}}
		},
		"a nested index that says it is a manifest": func(f *fixture, good, bad app) []entry {
			e := nested(f, entry{of: bad, platform: "linux/amd64"})
			e.mediaType = types.OCIManifestSchema1
			return []entry{{of: good, platform: "linux/amd64"}, e}
		},
		"deep down": func(f *fixture, good, bad app) []entry {
			e := entry{of: bad, platform: "linux/amd64"}
			for range 5 {
				e = nested(f, entry{of: good, platform: "linux/amd64"}, e)
			}
			return []entry{e}
		},
		"deeper than is read": func(f *fixture, good, bad app) []entry {
			e := entry{of: bad, platform: "linux/amd64"}
			for range 20 {
				e = nested(f, e)
			}
			return []entry{{of: good, platform: "linux/amd64"}, e}
		},
		"without platform": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64/v9"}, {of: bad}}
		},
		"without platform, and another fits": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad}}
		},
		"another variant": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad, platform: "linux/amd64/v2"}}
		},
		"an unknown variant": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad, platform: "linux/amd64/x"}}
		},
		"the architecture that is started when no other fits": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64/v4"}, {of: bad, platform: "linux/386"}}
		},
		"WebAssembly, which a runtime class may run": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad, platform: "wasip1/wasm"}}
		},
		"another system's name": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad, platform: "Linux/amd64"}}
		},
		"an unknown media type": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad, platform: "linux/amd64", mediaType: "application/octet-stream"}}
		},
		"an entry that is not there": func(f *fixture, good, _ app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {platform: "linux/amd64", digest: "sha256:" + strings.Repeat("7", 64)}}
		},
		"an entry with another kind of digest": func(f *fixture, good, _ app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {platform: "linux/amd64", digest: "sha512:" + strings.Repeat("7", 128)}}
		},
		"twice the same platform": func(_ *fixture, good, bad app) []entry {
			return []entry{{of: good, platform: "linux/amd64"}, {of: bad, platform: "linux/amd64"}}
		},
		"more entries than are read": func(f *fixture, good, bad app) []entry {
			return append(slices.Repeat([]entry{{of: good, platform: "linux/amd64"}}, 1000), entry{of: bad, platform: "linux/amd64"})
		},
	}
	for name, entries := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			good, bad := f.app(), f.app()
			f.push(f.repo+":good", good.image)
			f.sign(good.manifest)
			index := f.pushEntries(entries(f, good, bad)...)
			running := image.Running{Ref: f.repo + "@" + index}
			if got, err := f.checker(f.releaseKey()).Check(t.Context(), running); len(got.SignedBy) > 0 {
				t.Errorf("accepted: %s", describe(got, err))
			}
			manifest, err := workloadclaim.ParseManifestDigest(good.manifest)
			if err != nil {
				t.Fatal(err)
			}
			listed, err := image.NewDigestVerifier("listed", image.DigestList{Manifests: []workloadclaim.ManifestDigest{manifest}})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := f.checker(listed).Check(t.Context(), running); len(got.SignedBy) > 0 || err == nil && len(got.Manifests)+len(got.Unread) < 2 {
				t.Errorf("accepted by a list of digests, or not all that may run is named: %s", describe(got, err))
			}
			// Where the index itself is signed, no one has to choose.
			f.sign(index)
			if got, err := f.checker(f.releaseKey()).Check(t.Context(), running); len(got.SignedBy) == 0 {
				t.Errorf("refused, though the index is signed: %s", describe(got, err))
			}
			// Where the runtime says what it runs, that alone is judged.
			f.want(f.checker(f.releaseKey()), image.Running{ID: good.config, Ref: f.repo + "@" + index, Name: f.repo + ":good"},
				proved(good, []string{good.manifest}, "release-key"))
		})
	}
}

func TestIndexesOfRealImagesAreAccepted(t *testing.T) {
	cases := map[string]func(f *fixture, a, b app) []entry{
		"one manifest": func(_ *fixture, a, b app) []entry { return []entry{{of: a, platform: "linux/amd64"}} },
		"an index of indexes": func(f *fixture, a, b app) []entry {
			return []entry{{index: f.pushEntries(entry{of: a, platform: "linux/amd64"}), platform: "linux/amd64"},
				{index: f.pushEntries(entry{of: f.app(), platform: "linux/arm64"}), platform: "linux/arm64"}}
		},
		"two variants": func(_ *fixture, a, b app) []entry {
			return []entry{{of: a, platform: "linux/amd64"}, {of: b, platform: "linux/amd64/v2"}}
		},
		"no platform": func(_ *fixture, a, b app) []entry { return []entry{{of: a}} },
		"the same entry twice": func(_ *fixture, a, b app) []entry {
			return []entry{{of: a, platform: "linux/amd64"}, {of: a, platform: "linux/amd64"}}
		},
		"other platforms and build attestations beside it": func(f *fixture, a, b app) []entry {
			return []entry{{of: a, platform: "linux/amd64"}, {of: f.app(), platform: "linux/arm64"}, {of: f.app(), platform: "windows/amd64"},
				{of: f.app(), platform: "unknown/unknown"}, {of: f.app(), platform: "linux/386"}}
		},
		"a thousand other platforms": func(f *fixture, a, b app) []entry {
			return append(slices.Repeat([]entry{{platform: "linux/s390x", digest: b.manifest}}, 1000), entry{of: a, platform: "linux/amd64"})
		},
		"another index's child: the one that is signed lists it, too": func(f *fixture, a, b app) []entry {
			return []entry{{index: f.pushEntries(entry{of: a, platform: "linux/amd64"}, entry{of: b}), platform: "linux/amd64"}}
		},
	}
	for name, entries := range cases {
		for _, signed := range []string{"every manifest is signed", "the index is signed"} {
			t.Run(name+"/"+signed, func(t *testing.T) {
				f := newFixture(t)
				a, b := f.app(), f.app()
				index := f.pushEntries(entries(f, a, b)...)
				if signed == "the index is signed" {
					f.sign(index)
				} else {
					f.sign(a.manifest)
					f.sign(b.manifest)
				}
				got, err := f.checker(f.releaseKey()).Check(t.Context(), image.Running{Ref: f.repo + "@" + index})
				if !slices.Contains(got.SignedBy, "release-key") || len(got.Unread) > 0 {
					t.Errorf("refused: %s", describe(got, err))
				}
			})
		}
	}
}

// TestEachVerifierHasToAcceptAllOfIt: a verifier has to accept all by itself, or two verifiers that each accept one of two images
// would together accept both.
func TestEachVerifierHasToAcceptAllOfIt(t *testing.T) {
	f := newFixture(t)
	a, b := f.app(), f.app()
	index := f.pushEntries(entry{of: a, platform: "linux/amd64"}, entry{of: b, platform: "linux/amd64"})
	lists := map[string]app{"lists-a": a, "lists-b": b}
	var verifiers []image.Verifier
	for _, name := range []string{"lists-a", "lists-b"} {
		config, err := workloadclaim.ParseConfigDigest(lists[name].config)
		if err != nil {
			t.Fatal(err)
		}
		v, err := image.NewDigestVerifier(name, image.DigestList{Configs: []workloadclaim.ConfigDigest{config}})
		if err != nil {
			t.Fatal(err)
		}
		verifiers = append(verifiers, v)
	}
	got, err := f.checker(verifiers...).Check(t.Context(), image.Running{Ref: f.repo + "@" + index})
	if err != nil || len(got.SignedBy) > 0 || !got.Config.IsZero() || len(got.Manifests) != 2 || len(got.Failures) != 2 {
		t.Errorf("got %s", describe(got, err))
	}
	if len(got.Indexes) != 1 || got.Indexes[0].String() != index {
		t.Errorf("indexes %v", got.Indexes)
	}
}

func TestManyLayersAndAnnotationsInAnyCaseAreRead(t *testing.T) {
	f := newFixture(t)
	config := "sha256:" + strings.Repeat("0", 64)
	layer := fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":1}`, config)
	raw := []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q},"layers":[%s],"annotations":{"build":"1","Build":"2"}}`,
		config, string(bytes.Repeat([]byte(layer+","), 200))+layer))
	server := serve(t, string(raw))
	c, err := image.New(image.Config{InsecureRegistries: []string{server}, Now: f.clock})
	if err != nil {
		t.Fatal(err)
	}
	f.want(c, image.Running{ID: config, Name: server + "/x:v1"},
		proved(app{config: config}, []string{workloadclaim.ManifestDigestOf(raw).String()}))
}
