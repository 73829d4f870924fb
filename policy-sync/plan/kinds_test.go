package plan_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// networkSet is an endpoint as Calico makes it of a NetworkSet: with the profile of its namespace, and labels of its author's.
func networkSet(namespace, block string, labels map[string]string) *endpoint {
	own := map[string]string{"projectcalico.org/namespace": namespace}
	for k, v := range labels {
		own[k] = v
	}
	return &endpoint{ns: namespace, nets: []netip.Prefix{netip.MustParsePrefix(block)}, labels: own,
		parents: map[string]string{"pcns.projectcalico.org/name": namespace, "pcns." + v1alpha1.ModeLabel: v1alpha1.ModeEnforce}}
}

func TestANetworkSetDeniesNoAttestedPodItsAddresses(t *testing.T) {
	for _, block := range []string{"203.0.113.0/24", "0.0.0.0/0"} {
		w := settled(t)
		d := newDataplane(w.Snapshot)
		d.endpoints = append(d.endpoints, networkSet("payments", block, map[string]string{"team": "payments"}))
		if !d.allows(d.pod("shop/frontend-fra-1"), false, netip.MustParseAddr("203.0.113.10"), "TCP", 5432) {
			t.Errorf("a NetworkSet of payments with %s keeps shop/frontend from 203.0.113.10", block)
		}
	}
}

// TestANetworkSetIsNoPeer: not even with every label that the rule asks of a pod. Calico's own label of pods cannot stand on a
// set: a guard refuses it there.
func TestANetworkSetIsNoPeer(t *testing.T) {
	w := settled(t)
	d := newDataplane(w.Snapshot)
	labels := map[string]string{"projectcalico.org/serviceaccount": "frontend"}
	for k, v := range w.podNamed("shop/frontend-fra-1").Labels {
		labels[k] = v
	}
	d.endpoints = append(d.endpoints, networkSet("shop", "203.0.113.0/24", labels))
	if d.allows(d.pod("payments/api-fra-1"), true, netip.MustParseAddr("203.0.113.10"), "TCP", 8443) {
		t.Error("an address of a NetworkSet with trust labels reaches payments/api")
	}
}

func TestPoliciesOfTheTierBearItsLabel(t *testing.T) {
	for _, o := range mustMake(t, demo().Snapshot).Objects {
		if strings.HasPrefix(o.GetAPIVersion(), "projectcalico.org/") && strings.HasSuffix(o.GetKind(), "NetworkPolicy") &&
			o.GetLabels()["projectcalico.org/tier"] != v1alpha1.CalicoTier {
			t.Errorf("%s %s has labels %v: a list of the tier's policies does not find it", o.GetKind(), o.GetName(), o.GetLabels())
		}
	}
}
