package trustgraph_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

func TestAPathThatIstiodRefusesOrReadsOtherwiseIsRefused(t *testing.T) {
	for path, want := range map[string]string{
		"":                             "does not begin with /",
		"orders":                       "does not begin with /",
		"*":                            "does not begin with /",
		"/orders/{id}":                 "braces that hold something else",
		"/orders/{*":                   "braces that hold something else",
		"/orders}":                     "braces that hold something else",
		"/{***}":                       "braces that hold something else",
		"/a{*}":                        "braces that hold something else",
		"/{**}/{*}":                    "has {*} after {**}",
		"/{**}/a/{**}":                 "has {**} after {**}",
		"/{*}/b*":                      "beside its braces",
		"/a//{*}":                      "beside its braces",
		"/{*}/é":                       "beside its braces",
		"/a/*/b":                       "has * elsewhere",
		"/a*b":                         "has * elsewhere",
		"/a?b=c":                       "a query or a fragment",
		"/a#b":                         "a query or a fragment",
		"/a b":                         "a space or control character",
		"/a\tb":                        "a space or control character",
		"/a\x00":                       "a space or control character",
		"/\xff":                        "is not UTF-8",
		"/" + strings.Repeat("a", 512): "513 characters",
	} {
		if err := trustgraph.CheckPath(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", path, err, want)
		}
	}
	for _, path := range []string{"/", "/*", "/orders", "/orders/*", "/a/b*", "/orders/{*}", "/orders/{*}/items/", "/{**}", "/{*}/{**}/b.c", "/é", "/" + strings.Repeat("a", 511)} {
		if err := trustgraph.CheckPath(path); err != nil {
			t.Errorf("%.40q: %v", path, err)
		}
	}
}

// FuzzCheckPath: what is taken is what Istio's own rules take (pkg/config/security/security.go), read the plain way.
func FuzzCheckPath(f *testing.F) {
	for _, seed := range []string{"/", "/a/*", "/{*}/{**}", "/orders/{id}", "/a\xff", "/a?b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if trustgraph.CheckPath(path) != nil {
			return
		}
		any := false
		for _, segment := range strings.Split(strings.Trim(path, "/"), "/") {
			if any && strings.HasPrefix(segment, "{") || strings.ContainsAny(segment, "{}") && segment != "{*}" && segment != "{**}" {
				t.Errorf("%q is taken", path)
			}
			any = any || segment == "{**}"
		}
		if path[0] != '/' || strings.ContainsAny(path, "?# \n") {
			t.Errorf("%q is taken", path)
		}
	})
}
