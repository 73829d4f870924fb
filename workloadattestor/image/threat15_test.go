package image_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

func TestThreat15_EveryWayARuntimeNamesAnImageLeadsToTheSameDigests(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	other := f.app()
	index := f.pushIndex("multi", map[string]app{"amd64": a, "arm": other})
	f.sign(a.manifest)
	repo := f.repo
	cases := map[string]image.Running{
		"config digest and tag (imported)":                      {ID: a.config, Ref: a.config, Name: repo + ":v1"},
		"config digest without its algorithm (CRI-O)":           {ID: strings.TrimPrefix(a.config, "sha256:"), Name: repo + ":v1"},
		"config digest and repo digest (pulled)":                {ID: a.config, Ref: repo + "@" + a.manifest, Name: repo + ":v1"},
		"config digest and an index's repo digest":              {ID: a.config, Ref: repo + "@" + index, Name: repo + ":multi"},
		"config digest, name unusable, repo digest among hints": {ID: a.config, Name: "!!", Hints: []string{"??", repo + "@" + index}},
		"manifest digest as ID":                                 {ID: a.manifest, Name: repo + ":v1"},
		"index digest as ID":                                    {ID: index, Name: repo + ":multi"},
		"no ID, repo digest of the manifest":                    {Ref: repo + "@" + a.manifest},
		"no ID, repo digest of the index (Pod status)":          {Ref: repo + "@" + index},
		"no ID, dockershim's prefix":                            {Ref: "docker-pullable://" + repo + "@" + a.manifest},
	}
	for name, running := range cases {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.want(f.checker(f.releaseKey()), running, proved(a, []string{a.manifest}, "release-key"))
		})
	}
}

func TestThreat15_SignatureOfAnotherImageRefused(t *testing.T) {
	cases := map[string]struct {
		prepare func(f *fixture, mine, victim app)
		want    string
	}{
		"only the other image is signed": {func(f *fixture, _, victim app) {
			f.sign(victim.manifest)
		}, "no signature found"},
		"the other image's signature copied to this image's tag": {func(f *fixture, mine, victim app) {
			f.pushSignatures(mine.manifest, f.key, payload(f.t, victim.manifest))
		}, "for another image, "},
		"a signature over this image's config digest": {func(f *fixture, mine, _ app) {
			f.pushSignatures(mine.manifest, f.key, payload(f.t, mine.config))
		}, "for another image"},
		"an index that lists only the other image is signed": {func(f *fixture, mine, victim app) {
			index := f.pushIndex("multi", map[string]app{"amd64": victim})
			f.sign(index)
			f.pushSignatures(mine.manifest, f.key, payload(f.t, index))
		}, "for another image"},
		"signed by a stranger's key": {func(f *fixture, mine, _ app) {
			key, _, err := imagetest.NewKey()
			if err != nil {
				f.t.Fatal(err)
			}
			f.pushSignatures(mine.manifest, key, payload(f.t, mine.manifest))
		}, "none of 1 signatures is by its key"},
		"another type of payload": {func(f *fixture, mine, _ app) {
			f.pushSignatures(mine.manifest, f.key, bytes.Replace(payload(f.t, mine.manifest), []byte("cosign container image signature"), []byte("atomic container signature"), 1))
		}, "payload has type"},
		"payload with the digest twice": {func(f *fixture, mine, victim app) {
			p := strings.Replace(string(payload(f.t, victim.manifest)), `"docker-manifest-digest"`, `"Docker-Manifest-Digest":"`+mine.manifest+`","docker-manifest-digest"`, 1)
			f.pushSignatures(mine.manifest, f.key, []byte(p))
		}, "given twice"},
		"payload with a digest in upper case": {func(f *fixture, mine, _ app) {
			f.pushSignatures(mine.manifest, f.key, []byte(strings.ReplaceAll(string(payload(f.t, mine.manifest)), mine.manifest, "sha256:"+strings.ToUpper(mine.manifest[7:]))))
		}, "lower-case sha256"},
		"payload with text after it": {func(f *fixture, mine, _ app) {
			f.pushSignatures(mine.manifest, f.key, append(payload(f.t, mine.manifest), "{}"...))
		}, "after the end"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			mine, victim := f.app(), f.app()
			f.push(f.repo+":mine", mine.image)
			f.push(f.repo+":victim", victim.image)
			tc.prepare(f, mine, victim)
			f.wantRefusal(f.checker(f.releaseKey()), image.Running{ID: mine.config, Name: f.repo + ":mine"}, tc.want)
		})
	}
}

func TestThreat15_IndexSignatureCountsOnlyForWhatTheIndexLists(t *testing.T) {
	f := newFixture(t)
	a, b, outside := f.app(), f.app(), f.app()
	f.push(f.repo+":outside", outside.image)
	index := f.pushIndex("multi", map[string]app{"amd64": a, "arm": b, "unknown": f.app()})
	f.sign(index)
	c := f.checker(f.releaseKey())
	for _, listed := range []app{a, b} {
		f.want(c, image.Running{ID: listed.config, Name: f.repo + ":multi"}, proved(listed, []string{listed.manifest}, "release-key"))
	}
	f.wantRefusal(c, image.Running{ID: outside.config, Name: f.repo + ":multi", Hints: []string{f.repo + ":outside"}}, "no signature found")
}

func TestThreat15_TagThatMovedDoesNotChangeWhatRuns(t *testing.T) {
	f := newFixture(t)
	old, signed := f.app(), f.app()
	f.push(f.repo+":v1", old.image)
	f.push(f.repo+":v1", signed.image) // the tag moves; the node still runs the old image
	f.sign(signed.manifest)
	f.wantRefusal(f.checker(f.releaseKey()), image.Running{ID: old.config, Name: f.repo + ":v1"}, "none of 1 sources has a manifest for "+old.config)
	f.wantRefusal(f.checker(f.releaseKey()), image.Running{ID: old.config, Ref: f.repo + "@" + old.manifest, Name: f.repo + ":v1"}, "no signature found")
}

func TestThreat15_OneDigestUnderManyTagsIsOneImage(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	for _, tag := range []string{"v1", "latest", "prod"} {
		f.push(f.repo+":"+tag, a.image)
	}
	f.sign(a.manifest)
	c := f.checker(f.releaseKey())
	for _, tag := range []string{"v1", "latest", "prod"} {
		f.want(c, image.Running{ID: a.config, Name: f.repo + ":" + tag}, proved(a, []string{a.manifest}, "release-key"))
	}
}

func TestThreat15_OneContentInTwoManifests(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	b := f.repacked(a, "second")
	f.push(f.repo+":a", a.image)
	f.push(f.repo+":b", b.image)
	f.sign(b.manifest)
	both := []string{a.manifest, b.manifest}
	slices.Sort(both)
	f.want(f.checker(f.releaseKey()), image.Running{ID: a.config, Name: f.repo + ":a", Hints: []string{f.repo + ":b"}}, proved(a, both, "release-key"))
}

// polyglot is an image's config that is valid as a manifest, too, one that names the victim's config.
func polyglot(t *testing.T, a, victim app) []byte {
	t.Helper()
	raw, err := a.image.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	config["schemaVersion"] = 2
	config["mediaType"] = types.OCIManifestSchema1
	config["layers"] = []any{}
	config["config"] = map[string]any{"mediaType": types.OCIConfigJSON, "digest": victim.config, "size": 1}
	raw, err = json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestThreat15_ConfigThatIsAManifestTooIsNotReadAsOne(t *testing.T) {
	f := newFixture(t)
	victim := f.app()
	f.push(f.repo+":victim", victim.image)
	raw := polyglot(t, f.app(), victim)
	// The config blob is pushed as a manifest as well: asked as a manifest, its digest exists.
	digest := workloadclaim.ManifestDigestOf(raw).String()
	if err := remote.Put(f.reference(f.repo+"@"+digest), taggable(raw)); err != nil {
		t.Fatal(err)
	}
	f.wantRefusal(f.checker(f.releaseKey()), image.Running{ID: digest, Name: f.repo + ":victim"}, "of an image config")
}

// TestThreat15_AnotherNodesImageOfAnIndexProvesNothing: a Pod's status names an index; which of its images runs, the node's
// platform decides. Whoever writes the index may list a signed image for one platform and any other image for another.
func TestThreat15_AnotherNodesImageOfAnIndexProvesNothing(t *testing.T) {
	f := newFixture(t)
	signed, mine := f.app(), f.app()
	f.sign(signed.manifest)
	index := f.pushIndex("mixed", map[string]app{"amd64": signed, "arm64": mine})
	c := f.checker(f.releaseKey())
	ref := f.repo + "@" + index
	for name, tc := range map[string]struct {
		platform image.Platform
		want     app
		accepted bool
	}{
		"of no platform, the configured one counts": {image.Platform{}, signed, true},
		"of its own":               {image.Platform{OS: "linux", Architecture: "amd64"}, signed, true},
		"of a node of another one": {image.Platform{OS: "linux", Architecture: "arm64"}, mine, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.Check(t.Context(), image.Running{Ref: ref, Platform: tc.platform})
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Manifests) != 1 || got.Manifests[0].String() != tc.want.manifest || (len(got.SignedBy) > 0) != tc.accepted {
				t.Errorf("manifests %v, signed by %v", got.Manifests, got.SignedBy)
			}
		})
	}
}

// TestThreat15_APlatformUnderAnotherNameIsRefused: containerd takes x86_64 for amd64 and starts the first entry that fits.
func TestThreat15_APlatformUnderAnotherNameIsRefused(t *testing.T) {
	for _, other := range []string{"x86_64", "x86-64", "AMD64", "aarch64"} {
		t.Run(other, func(t *testing.T) {
			f := newFixture(t)
			signed, mine := f.app(), f.app()
			f.sign(signed.manifest)
			index := f.pushIndex("mixed", map[string]app{"amd64": signed, other: mine})
			_, err := f.checker(f.releaseKey()).Check(t.Context(), image.Running{Ref: f.repo + "@" + index})
			if err == nil || !strings.Contains(err.Error(), "another name of a platform") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestThreat15_IndexDigestNeedsAManifestForThePlatform(t *testing.T) {
	f := newFixture(t)
	index := f.pushIndex("none", map[string]app{"arm": f.app()})
	f.wantRefusal(f.checker(), image.Running{Ref: f.repo + "@" + index}, "0 entries for linux/amd64, want exactly one")
}

func TestThreat15_DigestListComparesWithinAKind(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	index := f.pushIndex("multi", map[string]app{"amd64": a})
	manifest, _ := workloadclaim.ParseManifestDigest(a.manifest)
	config, _ := workloadclaim.ParseConfigDigest(a.config)
	list, _ := workloadclaim.ParseIndexDigest(index)
	wrongManifest, _ := workloadclaim.ParseManifestDigest(a.config)
	wrongConfig, _ := workloadclaim.ParseConfigDigest(a.manifest)
	wrongIndex, _ := workloadclaim.ParseIndexDigest(a.manifest)
	cases := map[string]struct {
		list image.DigestList
		want bool
	}{
		"the manifest among manifests": {image.DigestList{Manifests: []workloadclaim.ManifestDigest{manifest}}, true},
		"the config among configs":     {image.DigestList{Configs: []workloadclaim.ConfigDigest{config}}, true},
		"the index among indexes":      {image.DigestList{Indexes: []workloadclaim.IndexDigest{list}}, true},
		"the config among manifests":   {image.DigestList{Manifests: []workloadclaim.ManifestDigest{wrongManifest}}, false},
		"the manifest among configs":   {image.DigestList{Configs: []workloadclaim.ConfigDigest{wrongConfig}}, false},
		"the manifest among indexes":   {image.DigestList{Indexes: []workloadclaim.IndexDigest{wrongIndex}}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			v, err := image.NewDigestVerifier("listed", tc.list)
			if err != nil {
				t.Fatal(err)
			}
			got, err := f.checker(v).Check(t.Context(), image.Running{ID: a.config, Ref: f.repo + "@" + index})
			if err != nil {
				t.Fatal(err)
			}
			if accepted := slices.Contains(got.SignedBy, "listed"); accepted != tc.want {
				t.Errorf("accepted: %v, want %v (%v)", accepted, tc.want, got.Failures)
			}
		})
	}
}

func TestThreat15_EveryFlippedByteOfASignatureIsRefused(t *testing.T) {
	f := newFixture(t)
	a := f.app()
	f.push(f.repo+":v1", a.image)
	good, err := imagetest.SignPayload(f.key, payload(t, a.manifest))
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(b []byte, i int) []byte {
		out := slices.Clone(b)
		out[i] ^= 1
		return out
	}
	var bad []imagetest.Signed
	for i := range good.Payload {
		bad = append(bad, imagetest.Signed{Payload: flipped(good.Payload, i), Signature: good.Signature})
	}
	for i := range good.Signature {
		bad = append(bad, imagetest.Signed{Payload: good.Payload, Signature: flipped(good.Signature, i)})
	}
	for chunk := range slices.Chunk(bad, 30) { // a signature manifest holds 32 at most
		if err := imagetest.Push(t.Context(), f.repo, a.manifest, chunk, name.Insecure); err != nil {
			t.Fatal(err)
		}
		f.wantRefusal(f.checker(f.releaseKey()), image.Running{ID: a.config, Name: f.repo + ":v1"}, "signatures is by its key")
	}
	if err := imagetest.Push(t.Context(), f.repo, a.manifest, append(bad[:30:30], good), name.Insecure); err != nil {
		t.Fatal(err)
	}
	f.want(f.checker(f.releaseKey()), image.Running{ID: a.config, Name: f.repo + ":v1"}, proved(a, []string{a.manifest}, "release-key"))
}
