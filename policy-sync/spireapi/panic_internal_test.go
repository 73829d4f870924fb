package spireapi

import (
	"context"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keelson-project/keelson/policy-sync/plan"
)

// TestAPanicWhileConnectingIsAnErrorOfEachUse: nobody waits for ever, and the next use begins again.
func TestAPanicWhileConnectingIsAnErrorOfEachUse(t *testing.T) {
	s, err := Open(Options{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Socket: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	connected := 0
	s.connect = func(context.Context, Options, *complaints) (*Client, error) { connected++; panic("index out of range") }
	if _, err := s.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("a reading got %v", err)
	}
	if errs := s.Apply(t.Context(), []plan.Operation{{Action: plan.DeleteAgent}}); errs[0] == nil || !strings.Contains(errs[0].Error(), "index out of range") {
		t.Errorf("a writing got %v", errs)
	}
	if connected != 2 {
		t.Errorf("connected %d times", connected)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
