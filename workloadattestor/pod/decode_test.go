package pod

import (
	"strings"
	"testing"
)

func TestFieldsOfTomorrow(t *testing.T) {
	for name, tc := range map[string]struct {
		json    string
		strange string // part of what is said; "" for nothing
		err     string
	}{
		"none":                            {`{"spec":{"containers":[{"name":"a"}]}}`, "", ""},
		"of the pod's security":           {`{"spec":{"securityContext":{"x":1}}}`, "spec.securityContext.x", ""},
		"of a container's security":       {`{"spec":{"containers":[{"securityContext":{"x":{"y":1}}}]}}`, "spec.containers[0].securityContext.x", ""},
		"of an init container's":          {`{"spec":{"initContainers":[{},{"securityContext":{"x":1}}]}}`, "spec.initContainers[1].securityContext.x", ""},
		"of an ephemeral one's":           {`{"spec":{"ephemeralContainers":[{"securityContext":{"x":1}}]}}`, "spec.ephemeralContainers[0].securityContext.x", ""},
		"deep in a container's security":  {`{"spec":{"containers":[{"securityContext":{"seccompProfile":{"x":1}}}]}}`, "seccompProfile.x", ""},
		"a volume":                        {`{"spec":{"volumes":[{"name":"v","hostDisk":{"path":"/"}}]}}`, "spec.volumes[0].hostDisk", ""},
		"another namespace of the host's": {`{"spec":{"hostTime":true}}`, "spec.hostTime", ""},
		"in upper case":                   {`{"spec":{"HostPID":true}}`, "", ""}, // the API server does not read it so either
		"what the API server fills in":    {`{"spec":{"containers":[{"name":"a","niceness":3}],"politeness":"High"}}`, "", ""},
		"of the status":                   {`{"status":{"hostX":1}}`, "", ""},
		"given twice":                     {`{"spec":{"hostPID":true,"hostPID":false}}`, "", "ambiguous"},
		"no JSON":                         {`{`, "", "is no pod"},
		"another form":                    {`{"spec":[]}`, "", "is no pod"},
	} {
		t.Run(name, func(t *testing.T) {
			p, strange, err := decodePod([]byte(tc.json))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || p != nil {
					t.Errorf("got %v, %v, want an error with %q", p, err, tc.err)
				}
				return
			}
			text := strings.Join(strange, " ")
			if err != nil || (text == "") != (tc.strange == "") || !strings.Contains(text, tc.strange) {
				t.Errorf("strange %q, %v; want %q", text, err, tc.strange)
			}
		})
	}
	many := `{"spec":{"securityContext":{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"` + strings.Repeat("x", 10000) + `":1}}}`
	if _, strange, err := decodePod([]byte(many)); err != nil || len(strange) != maxStrange || len(strings.Join(strange, "")) > 2000 {
		t.Errorf("%d reports, %v", len(strange), err)
	}
}

func FuzzDecodePod(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"a"},"spec":{"hostPID":true,"securityContext":{"x":1},"containers":[{"securityContext":{"privileged":true}}]}}`))
	f.Add([]byte(`{"spec":{"volumes":[{"name":"v","hostPath":{"path":"/"}}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, strange, err := decodePod(raw)
		if err != nil && (p != nil || strange != nil) {
			t.Fatalf("a pod with an error: %v", err)
		}
		if len(strange) > maxStrange {
			t.Fatalf("%d reports", len(strange))
		}
	})
}
