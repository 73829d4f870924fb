package image_test

import (
	"crypto"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// paged serves files, and lists of referrers in pages of some entries; link makes the Link of a page from the number of the next.
func (f files) paged(t *testing.T, size int, link func(r *http.Request, next int) string) string {
	t.Helper()
	rest := f.handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, ok := f[strings.TrimPrefix(r.URL.Path, "/v2/app/")]
		if !ok || !strings.Contains(r.URL.Path, "/referrers/") {
			rest.ServeHTTP(w, r)
			return
		}
		var list struct {
			Manifests []json.RawMessage `json:"manifests"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			t.Error(err)
		}
		n, _ := strconv.Atoi(r.URL.Query().Get("n")) // absent is the first page
		page := list.Manifests[min(n*size, len(list.Manifests)):min((n+1)*size, len(list.Manifests))]
		if (n+1)*size < len(list.Manifests) {
			w.Header().Set("Link", link(r, n+1))
		}
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		_ = json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": page})
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// TestThreat15_ListsOfReferrersAreReadToTheirEnd: a signature that is not on the first page is not missing, and what could not be read is
// not known to be missing.
func TestThreat15_ListsOfReferrersAreReadToTheirEnd(t *testing.T) {
	key, public, err := imagetest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	const scans = "application/vnd.example.scan+json"
	plain := func(r *http.Request, next int) string { return fmt.Sprintf(`<%s?n=%d>; rel="next"`, r.URL.Path, next) }
	cases := map[string]struct {
		others, size int
		kind         string // artifactType of the others
		link         func(r *http.Request, next int) string
		signed       bool
		unknown      bool
		want         string
	}{
		"on the last of three pages":         {others: 120, size: 50, kind: scans, link: plain, signed: true},
		"with other links beside it":         {others: 60, size: 50, kind: scans, link: func(r *http.Request, next int) string { return `</x>; rel="first", ` + plain(r, next) }, signed: true},
		"thousands of scans":                 {others: 3000, size: 1000, kind: scans, link: plain, signed: true},
		"thousands that could be signatures": {others: 3000, size: 1000, kind: bundleType, link: plain, unknown: true, want: "referrers could be signatures, the rest is not read"},
		"a page elsewhere":                   {others: 60, size: 50, kind: scans, link: func(*http.Request, int) string { return `<https://other.example/v2/>; rel="next"` }, unknown: true, want: "next page"},
		"a page of another repository": {others: 60, size: 50, kind: scans, link: func(r *http.Request, next int) string {
			return fmt.Sprintf(`<%s?n=%d>; rel="next"`, strings.Replace(r.URL.Path, "/app/", "/other/", 1), next)
		}, unknown: true, want: "next page"},
		"pages without end": {others: 60, size: 50, kind: scans, link: func(r *http.Request, _ int) string { return plain(r, 0) }, unknown: true, want: "more than 16 pages"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			img := read(t, "cosign-3.1.3", "image-manifest.json")
			subject := digestOf(img)
			f := files{"manifests/" + subject: img}
			f.refer(t, subject, bundleType, bundleType, nil, envelope(t, key, crypto.SHA256, statement(subject, signs)))
			var list map[string]any
			if err := json.Unmarshal(f["referrers/"+subject], &list); err != nil {
				t.Fatal(err)
			}
			var entries []any
			for n := range tc.others {
				entries = append(entries, map[string]any{"mediaType": types.OCIManifestSchema1, "digest": fmt.Sprintf("sha256:%064x", n), "size": 1, "artifactType": tc.kind})
			}
			list["manifests"] = slices.Concat(entries, list["manifests"].([]any)) //nolint:forcetypeassert // as written above
			if f["referrers/"+subject], err = json.Marshal(list); err != nil {
				t.Fatal(err)
			}
			host := f.paged(t, tc.size, tc.link)
			got, err := checkerOf(t, host, keyVerifier(t, public)).Check(t.Context(), image.Running{Ref: host + "/app@" + subject})
			if err != nil || (len(got.SignedBy) == 1) != tc.signed || !strings.Contains(describe(got, err), tc.want) {
				t.Fatalf("got %s", describe(got, err))
			}
			if !tc.signed && got.Failures[0].Unknown != tc.unknown {
				t.Errorf("unknown %t: %s", got.Failures[0].Unknown, describe(got, err))
			}
		})
	}
}
