package ek_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

func TestRevocationLists(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	good := "revoked:\n- ekHash: " + hash + "\n  reason: stolen in October\n"
	got, err := ek.ParseRevoked([]byte(good))
	h, _ := nodeclaim.ParseEKHash(hash)
	if err != nil || got[h] != "stolen in October" || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := ek.ParseRevoked([]byte("revoked: []")); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	cases := map[string]struct{ text, want string }{
		"nothing":          {"", "it is empty"},
		"an unknown key":   {"revokd: []", "line 1: the revocation list has unknown key"},
		"no list":          {"revoked: yes", "line 1: revoked must be a list"},
		"a bad hash":       {"revoked:\n- {ekHash: xyz, reason: r}", "line 2: EK hash"},
		"no reason":        {"revoked:\n- {ekHash: " + hash + "}", "lacks key \"reason\""},
		"an empty reason":  {"revoked:\n- {ekHash: " + hash + ", reason: \"\"}", "reason must be text"},
		"a hash twice":     {good + "- {ekHash: " + hash + ", reason: r}", "line 4: EK hash " + hash + " stands twice"},
		"two documents":    {good + "---\n" + good, "only one YAML document"},
		"far too many":     {strings.Repeat("#", ek.MaxInventorySize+1), "more than"},
		"broken YAML":      {"revoked: [", "revocation list"},
		"a list of scalar": {"revoked: [1]", "must be a mapping"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := ek.ParseRevoked([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
