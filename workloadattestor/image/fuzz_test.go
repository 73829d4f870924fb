package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

func FuzzPayload(f *testing.F) {
	f.Add([]byte(`{"critical":{"identity":{"docker-reference":"r"},"image":{"docker-manifest-digest":"sha256:` + strings.Repeat("a", 64) + `"},"type":"cosign container image signature"},"optional":null}`))
	f.Add([]byte(`{"critical":{"image":{"docker-manifest-digest":"sha256:A"},"type":"x"}}`))
	f.Add([]byte(`{"critical":{},"Critical":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		digest, err := parsePayload(raw)
		if err != nil {
			return
		}
		if d, ok := bareDigest(digest); !ok || d != digest {
			t.Fatalf("digest %q", digest)
		}
		if strings.Count(string(raw), "docker-manifest-digest") > 1 {
			t.Log("the key's name may stand in other values")
		}
	})
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("a", 64) + `"},"layers":[{"mediaType":"x","annotations":{"a":"b"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:b","platform":{"os":"linux"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"config":{},"rootfs":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc, err := parseDocument(raw)
		if err != nil {
			return
		}
		if (doc.manifest == nil) == (doc.index == nil) {
			t.Fatal("neither or both")
		}
		if doc.manifest != nil && (doc.manifest.config.IsZero() || doc.manifest.digest.IsZero()) {
			t.Fatal("manifest without digests")
		}
	})
}

func FuzzBundle(f *testing.F) {
	raw, err := os.ReadFile("testdata/cosign-3.1.3/bundle.json")
	if err != nil {
		f.Fatal(err)
	}
	key, err := os.ReadFile("testdata/cosign-3.1.3/cosign.pub")
	if err != nil {
		f.Fatal(err)
	}
	v, err := NewKeyVerifier("key", key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{}},"messageSignature":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := parseBundle(raw)
		if err != nil {
			return
		}
		// Whatever else is in a bundle, the key has signed one statement.
		w, err := v.vouches(signed{bundle: b})
		if err == nil && (len(w.digests) != 1 || w.digests[0] != "sha256:c1ea904b31d50e330124634cb700730264049638226308f93c33f24b76a33408") {
			t.Fatalf("vouches for %v", w.digests)
		}
	})
}

func FuzzReferrers(f *testing.F) {
	raw, err := os.ReadFile("testdata/cosign-3.1.3/referrers.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:b","artifactType":"x"},{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := referrers(raw)
		if len(list) > maxReferrers || err != nil && len(list) > 0 && len(list) < maxReferrers {
			t.Fatalf("%d referrers, %v", len(list), err)
		}
		for _, digest := range list {
			if _, ok := bareDigest(digest); !ok {
				t.Fatalf("digest %q", digest)
			}
		}
	})
}

// shelf is a source of documents by digest.
type shelf map[string][]byte

func (shelf) describe() string { return "shelf" }
func (shelf) roots(_ context.Context, q question) ([]string, error) {
	return []string{string(q.id)}, nil
}
func (shelf) signatures(context.Context, string) ([]string, error)    { return nil, nil }
func (s shelf) blob(_ context.Context, digest string) ([]byte, error) { return s[digest], nil }

func (s shelf) manifest(_ context.Context, ref string) ([]byte, error) {
	if raw, ok := s[ref]; ok {
		return raw, nil
	}
	return nil, errNotFound
}

func (s shelf) put(raw []byte) string {
	digest := workloadclaim.ManifestDigestOf(raw).String()
	s[digest] = raw
	return digest
}

// FuzzIndexWalk binds an index of any bytes that lists one image and one index, each by its digest where the bytes say A and B.
func FuzzIndexWalk(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"A","platform":{"os":"linux","architecture":"amd64"}},{"digest":"B"}]}`), "linux", "amd64")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"B","platform":{"os":"Linux","architecture":"x86_64"}}]}`), "", "")
	f.Fuzz(func(t *testing.T, raw []byte, system, architecture string) {
		s := shelf{}
		a := s.put([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("a", 64) + `"}}`))
		b := s.put([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + a + `"},{"digest":"sha256:` + strings.Repeat("f", 64) + `"}]}`))
		root := s.put([]byte(strings.NewReplacer(`"A"`, `"`+a+`"`, `"B"`, `"`+b+`"`).Replace(string(raw))))
		got, _, err := bind(t.Context(), []source{s}, question{id: identity(root)}, Platform{OS: system, Architecture: architecture})
		if err != nil {
			return
		}
		if len(got.contents) == 0 || len(got.contents) > maxCandidates+1 {
			t.Fatalf("%d contents", len(got.contents))
		}
		for _, c := range got.contents {
			if (c.unread == "") != (len(c.manifests) > 0) || (c.unread == "") == c.config.IsZero() || (c.unread == "") != (c.why == nil) {
				t.Fatalf("content %+v", c)
			}
		}
	})
}

func FuzzRunning(f *testing.F) {
	f.Add("sha256:"+strings.Repeat("a", 64), "r.example/x@sha256:"+strings.Repeat("b", 64), "r.example/x:v1")
	f.Add(strings.Repeat("a", 64), "", "")
	f.Add("docker-pullable://x@sha256:"+strings.Repeat("b", 64), ":", "@")
	f.Fuzz(func(t *testing.T, id, ref, name string) {
		q, err := parseRunning(Running{ID: id, Ref: ref, Name: name}, map[string]bool{"r.example": true})
		if err != nil {
			return
		}
		if d, ok := bareDigest(string(q.id)); !ok || d != string(q.id) {
			t.Fatalf("identity %q", q.id)
		}
	})
}

func TestCacheStaysWithinItsLimit(t *testing.T) {
	c, now := newCache(3), time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	for i := range 10 {
		c.put(strings.Repeat("x", i), &knowledge{tries: i, renew: now.Add(time.Duration(i) * time.Second)}, now)
	}
	if len(c.entries) != 3 {
		t.Errorf("%d entries", len(c.entries))
	}
	if e, ok := c.get(strings.Repeat("x", 9), now); !ok || e.tries != 9 {
		t.Error("the newest answer was dropped")
	}
	c.put("late", &knowledge{renew: now.Add(49 * time.Hour)}, now.Add(48*time.Hour))
	if len(c.entries) != 1 {
		t.Errorf("answers that no one asks for are kept: %d entries", len(c.entries))
	}
}

func TestMemoryStaysWithinItsLimit(t *testing.T) {
	m := newMemory(100)
	var digests []string
	for i := range 10 {
		content := []byte(strings.Repeat(string(rune('a'+i)), 30))
		m.put(content)
		digests = append(digests, workloadclaim.ManifestDigestOf(content).String())
		if _, ok := m.get(digests[0]); !ok {
			t.Error("what is used is dropped")
		}
	}
	if len(m.items) != 3 || m.order.Len() != 3 || m.left < 0 {
		t.Errorf("%d documents, %d bytes left", len(m.items), m.left)
	}
	if got, ok := m.get(digests[9]); !ok || string(got) != strings.Repeat("j", 30) {
		t.Error("the newest document is not there")
	}
}

// FuzzPages makes one list of an answer and a next page of any bytes.
func FuzzPages(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"digest":"a"}]}`), []byte(`{"manifests":[]}`), `</v2/a/referrers/b?n=2>; rel="next"`)
	f.Add([]byte(`{}`), []byte(`{"manifests":[1]}`), `<x>;rel=prev, <?last=1> ; a=b;rel="next"`)
	f.Fuzz(func(t *testing.T, one, two []byte, link string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://r.example/v2/a/referrers/b", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer := func(raw []byte, link string) *http.Response {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Link": {link}}, Body: io.NopCloser(bytes.NewReader(raw)), Request: request}
		}
		asked := 0
		got, err := whole(answer(one, link), func(r *http.Request) (*http.Response, error) { //nolint:bodyclose // closed below
			if asked++; asked > maxPages || r.URL.Host != "r.example" || r.URL.Scheme != "https" || r.URL.Path != "/v2/a/referrers/b" {
				t.Fatalf("request %d to %s", asked, r.URL)
			}
			return answer(two, link), nil
		})
		if err != nil {
			return
		}
		defer func() { _ = got.Body.Close() }() // it is in memory
		if raw, err := io.ReadAll(got.Body); err != nil || asked > 0 && !json.Valid(raw) {
			t.Fatalf("%v: %q", err, raw)
		}
	})
}
