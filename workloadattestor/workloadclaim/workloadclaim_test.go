package workloadclaim_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

const (
	hexA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hexB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func TestThreat15_DigestKindsCannotBeMixedUp(t *testing.T) {
	kinds := []reflect.Type{
		reflect.TypeFor[workloadclaim.ManifestDigest](),
		reflect.TypeFor[workloadclaim.ConfigDigest](),
		reflect.TypeFor[workloadclaim.IndexDigest](),
	}
	for i, a := range kinds {
		for _, b := range kinds[i+1:] {
			if a.ConvertibleTo(b) || b.ConvertibleTo(a) || a.AssignableTo(b) {
				t.Errorf("%v and %v can be converted into one another", a, b)
			}
		}
	}
}

func TestDigestsHaveOneSpelling(t *testing.T) {
	cases := map[string]struct {
		text string
		want string // part of the error; empty: accepted
	}{
		"sha256 and 64 hex digits":   {hexA, ""},
		"no algorithm":               {strings.TrimPrefix(hexA, "sha256:"), `start with "sha256:"`},
		"another algorithm":          {"sha512:" + strings.Repeat("a", 128), `start with "sha256:"`},
		"too short":                  {hexA[:len(hexA)-1], "want 64 hex digits"},
		"too long":                   {hexA + "a", "want 64 hex digits"},
		"upper case":                 {"sha256:" + strings.Repeat("A", 64), "lower-case"},
		"not hex":                    {"sha256:" + strings.Repeat("g", 64), "invalid byte"},
		"empty":                      {"", `start with "sha256:"`},
		"a flood is cut in the log":  {strings.Repeat("x", 100000), "…"},
		"white space at the end":     {hexA[:len(hexA)-1] + " ", "invalid byte"},
		"algorithm twice":            {"sha256:" + hexA, "want 64 hex digits"},
		"upper-case algorithm":       {"SHA256:" + hexA[7:], `start with "sha256:"`},
		"newline before the digits ": {"sha256:\n" + hexA[8:], "invalid byte"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			m, err1 := workloadclaim.ParseManifestDigest(tc.text)
			c, err2 := workloadclaim.ParseConfigDigest(tc.text)
			i, err3 := workloadclaim.ParseIndexDigest(tc.text)
			for _, err := range []error{err1, err2, err3} {
				if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("got error %v, want one with %q", err, tc.want)
				}
				if err != nil && len(err.Error()) > 300 {
					t.Errorf("error of %d characters", len(err.Error()))
				}
			}
			if tc.want == "" && (m.String() != tc.text || c.String() != tc.text || i.String() != tc.text) {
				t.Errorf("got %s, %s, %s", m, c, i)
			}
			if tc.want != "" && (!m.IsZero() || !c.IsZero() || !i.IsZero()) {
				t.Error("a refused digest is not zero")
			}
		})
	}
}

func full(t *testing.T) workloadclaim.Claims {
	t.Helper()
	config, err := workloadclaim.ParseConfigDigest(hexA)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := workloadclaim.ParseManifestDigest(hexB)
	if err != nil {
		t.Fatal(err)
	}
	return workloadclaim.Claims{
		Node: "fra-1", Namespace: "payments", PodName: "api-0", PodUID: "11111111-2222-3333-4444-555555555555",
		Container: "main", ServiceAccount: "api",
		Config: config, Manifests: []workloadclaim.ManifestDigest{manifest, manifest}, SignedBy: []string{"release-key", "audit-key"},
		Privileged: workloadclaim.No, HostPID: workloadclaim.No, HostNetwork: workloadclaim.No, HostIPC: workloadclaim.No,
		HostPath: workloadclaim.No, Baseline: workloadclaim.Yes, Restricted: workloadclaim.Yes,
		Posture: workloadclaim.Posture{
			Capabilities: []string{"NET_BIND_SERVICE"}, User: "65532", UserNamespace: workloadclaim.No, NoNewPrivileges: workloadclaim.Yes,
			ReadOnlyRoot: workloadclaim.Yes, MaskedProc: workloadclaim.Yes, PIDsLimit: 1024,
			Seccomp:  workloadclaim.Profile{Confined: workloadclaim.Yes, Type: workloadclaim.ProfileLocalhost, Name: "profiles/audit.json"},
			AppArmor: workloadclaim.Profile{Confined: workloadclaim.Yes, Type: workloadclaim.ProfileRuntimeDefault},
		},
		RuntimeClass: "crun.example", RuntimeHandler: "crun", Sandbox: workloadclaim.SandboxRunc,
	}
}

func texts(selectors []workloadclaim.Selector) []string {
	var out []string
	for _, s := range selectors {
		out = append(out, s.String())
	}
	return out
}

func TestSelectorsAreSortedAndWithoutDoubles(t *testing.T) {
	got, err := full(t).Selectors()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"apparmor:confined", "apparmor:runtime-default", "capability:net_bind_service",
		"container:main", "host-ipc:false", "host-net:false", "host-path:false", "host-pid:false",
		"image-config:" + hexA, "image-manifest:" + hexB, "no-new-privileges:true",
		"node:fra-1", "ns:payments", "pids-limit:1024", "pod-name:api-0", "pod-uid:11111111-2222-3333-4444-555555555555",
		"privileged:false", "read-only-root:true", "runtime:baseline", "runtime:restricted", "runtime-class:crun.example", "runtime-handler:crun",
		"sa:api", "sandbox:runc", "seccomp:confined", "seccomp:localhost", "seccomp:localhost/profiles/audit.json",
		"signed-by:audit-key", "signed-by:release-key", "user:65532", "user-namespace:false",
	}
	if d := cmp.Diff(want, texts(got)); d != "" {
		t.Errorf("selectors (-want +got):\n%s", d)
	}
}

func TestWhatIsNotProvedHasNoSelector(t *testing.T) {
	got, err := workloadclaim.Claims{}.Selectors()
	if err != nil || len(got) != 0 {
		t.Errorf("empty claims: got %v, %v", texts(got), err)
	}
}

func TestLevelsNeedEveryFact(t *testing.T) {
	facts := map[string]func(*workloadclaim.Claims) *workloadclaim.Fact{
		"privileged":       func(c *workloadclaim.Claims) *workloadclaim.Fact { return &c.Privileged },
		"host PID":         func(c *workloadclaim.Claims) *workloadclaim.Fact { return &c.HostPID },
		"host network":     func(c *workloadclaim.Claims) *workloadclaim.Fact { return &c.HostNetwork },
		"host IPC":         func(c *workloadclaim.Claims) *workloadclaim.Fact { return &c.HostIPC },
		"path of the node": func(c *workloadclaim.Claims) *workloadclaim.Fact { return &c.HostPath },
	}
	expect := func(t *testing.T, c workloadclaim.Claims, baseline, restricted bool) {
		t.Helper()
		selectors, err := c.Selectors()
		if err != nil {
			t.Fatal(err)
		}
		for selector, want := range map[string]bool{"runtime:baseline": baseline, "runtime:restricted": restricted} {
			if has := slices.Contains(texts(selectors), selector); has != want {
				t.Errorf("%s emitted: %v, want %v", selector, has, want)
			}
		}
	}
	for name, at := range facts {
		t.Run(name, func(t *testing.T) {
			for fact, want := range map[workloadclaim.Fact]bool{workloadclaim.No: true, workloadclaim.Yes: false, workloadclaim.Unproven: false} {
				c := full(t)
				*at(&c) = fact
				expect(t, c, want, want)
			}
		})
	}
	for _, fact := range []workloadclaim.Fact{workloadclaim.No, workloadclaim.Unproven} {
		c := full(t)
		c.Baseline = fact
		expect(t, c, false, false)
		c = full(t)
		c.Restricted = fact
		expect(t, c, true, false)
	}
}

func TestPostureSelectors(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*workloadclaim.Posture)
		gone   string // prefix of selectors that there must not be
		there  string // one that there must be
	}{
		"no capability":              {func(p *workloadclaim.Posture) { p.Capabilities = []string{} }, "capability:net", "capability:none"},
		"capabilities not reported":  {func(p *workloadclaim.Posture) { p.Capabilities = nil }, "capability:", "user:65532"},
		"root":                       {func(p *workloadclaim.Posture) { p.User = "0" }, "user:6", "user:0"},
		"no user":                    {func(p *workloadclaim.Posture) { p.User = "" }, "user:", "user-namespace:false"},
		"no seccomp":                 {func(p *workloadclaim.Posture) { p.Seccomp = workloadclaim.Profile{Confined: workloadclaim.No} }, "seccomp:c", "seccomp:unconfined"},
		"no seccomp, whatever asked": {func(p *workloadclaim.Posture) { p.Seccomp.Confined = workloadclaim.No }, "seccomp:l", "seccomp:unconfined"},
		"seccomp not reported":       {func(p *workloadclaim.Posture) { p.Seccomp.Confined = workloadclaim.Unproven }, "seccomp:", "user:65532"},
		"a profile in upper case":    {func(p *workloadclaim.Posture) { p.Seccomp.Name = "Audit.json" }, "seccomp:localhost/", "seccomp:localhost"},
		"a profile with a space":     {func(p *workloadclaim.Posture) { p.Seccomp.Name = "a b" }, "seccomp:localhost/", "seccomp:localhost"},
		"a profile without a name":   {func(p *workloadclaim.Posture) { p.Seccomp.Name = "" }, "seccomp:localhost/", "seccomp:localhost"},
		"no limit of processes":      {func(p *workloadclaim.Posture) { p.PIDsLimit = 0 }, "pids-limit:", "user:65532"},
		"a root that can be written": {func(p *workloadclaim.Posture) { p.ReadOnlyRoot = workloadclaim.No }, "read-only-root:true", "read-only-root:false"},
	} {
		t.Run(name, func(t *testing.T) {
			c := full(t)
			tc.change(&c.Posture)
			selectors, err := c.Selectors()
			if err != nil {
				t.Fatal(err)
			}
			got := texts(selectors)
			if i := slices.IndexFunc(got, func(s string) bool { return strings.HasPrefix(s, tc.gone) && s != tc.there }); i >= 0 {
				t.Errorf("has %s", got[i])
			}
			if !slices.Contains(got, tc.there) {
				t.Errorf("no %s in %v", tc.there, got)
			}
		})
	}
	for name, change := range map[string]func(*workloadclaim.Claims){
		"a capability with a space": func(c *workloadclaim.Claims) { c.Posture.Capabilities = []string{"A B"} },
		"too many capabilities":     func(c *workloadclaim.Claims) { c.Posture.Capabilities = make([]string, 65) },
		"a runtime class with /":    func(c *workloadclaim.Claims) { c.RuntimeClass = "a/b" },
		"a handler in upper case":   func(c *workloadclaim.Claims) { c.RuntimeHandler = "Kata" },
		"a sandbox of no kind":      func(c *workloadclaim.Claims) { c.Sandbox = "vm" },
	} {
		c := full(t)
		change(&c)
		if got, err := c.Selectors(); err == nil {
			t.Errorf("%s: %v", name, texts(got))
		}
	}
}

func TestClaimsThatCannotBeSelectorsAreRefused(t *testing.T) {
	cases := map[string]struct {
		change func(*workloadclaim.Claims)
		want   string
	}{
		"namespace with a second selector in it": {func(c *workloadclaim.Claims) { c.Namespace = "a sa:b" }, "selector ns"},
		"upper-case namespace":                   {func(c *workloadclaim.Claims) { c.Namespace = "Payments" }, "selector ns"},
		"newline in a pod's name":                {func(c *workloadclaim.Claims) { c.PodName = "a\n" }, "selector pod-name"},
		"empty part in a service account":        {func(c *workloadclaim.Claims) { c.ServiceAccount = "a..b" }, "selector sa"},
		"container name of 64 characters":        {func(c *workloadclaim.Claims) { c.Container = strings.Repeat("a", 64) }, "selector container"},
		"pod name of 254 characters":             {func(c *workloadclaim.Claims) { c.PodName = strings.Repeat("a", 254) }, "selector pod-name"},
		"pod UID with a slash":                   {func(c *workloadclaim.Claims) { c.PodUID = "a/b" }, "selector pod-uid"},
		"verifier with a colon":                  {func(c *workloadclaim.Claims) { c.SignedBy = []string{"a:b"} }, "selector signed-by"},
		"too many manifests": {func(c *workloadclaim.Claims) {
			c.Manifests = make([]workloadclaim.ManifestDigest, 17)
		}, "17 manifests"},
		"too many verifiers": {func(c *workloadclaim.Claims) { c.SignedBy = make([]string, 65) }, "65 verifiers"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c := full(t)
			tc.change(&c)
			got, err := c.Selectors()
			if err == nil || !strings.Contains(err.Error(), tc.want) || got != nil {
				t.Errorf("got %v, error %v, want one with %q", texts(got), err, tc.want)
			}
		})
	}
}

func TestParseSelector(t *testing.T) {
	cases := map[string]struct{ text, want string }{
		"a namespace":                   {"ns:payments", ""},
		"a digest, which has a colon":   {"image-manifest:" + hexA, ""},
		"no colon":                      {"ns", "want kind:value"},
		"an unknown kind":               {"image:" + hexA, "does not exist"},
		"an empty value":                {"sa:", "not a DNS subdomain"},
		"a bare digest":                 {"image-config:" + hexA[7:], "sha256:"},
		"privileged maybe":              {"privileged:maybe", "neither true nor false"},
		"privileged in upper case":      {"privileged:True", "neither true nor false"},
		"a level that asks for nothing": {"runtime:privileged", `neither "baseline" nor "restricted"`},
		"the lower level":               {"runtime:baseline", ""},
		"a capability":                  {"capability:net_bind_service", ""},
		"a capability with CAP":         {"capability:CAP_CHOWN", "not a capability"},
		"a profile of the node":         {"seccomp:localhost/profiles/a.json", ""},
		"a profile from elsewhere":      {"seccomp:localhost//etc/passwd", "is not"},
		"a user's name":                 {"user:root", "not a user ID"},
		"a user with a zero before":     {"user:01", "not a user ID"},
		"a user that is too large":      {"user:4294967296", "not a user ID"},
		"no limit":                      {"pids-limit:0", "not a positive number"},
		"a sandbox":                     {"sandbox:gvisor", ""},
		"too long":                      {"pod-name:" + strings.Repeat("a", 400), "the limit is 300"},
		"a kind in upper case":          {"NS:payments", "does not exist"},
		"no kind":                       {":payments", "does not exist"},
		"a service account with spaces": {"sa:a b", "not a DNS subdomain"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := workloadclaim.ParseSelector(tc.text)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want an error with %q", err, tc.want)
				}
				return
			}
			if err != nil || s.String() != tc.text {
				t.Errorf("got %s, %v", s, err)
			}
		})
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, seed := range []string{"ns:payments", "sa:api", "image-manifest:" + hexA, "privileged:true", "runtime:restricted", "pod-uid:a", "x", ":", "signed-by:k"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := workloadclaim.ParseSelector(text)
		if err != nil {
			return
		}
		if s.String() != text {
			t.Fatalf("%q parses to %q", text, s)
		}
		if strings.ContainsAny(text, " \n\t\x00,;") || strings.ToLower(text) != text {
			t.Fatalf("%q is accepted", text)
		}
	})
}
