package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/syncconfig"
)

// served is a discovery client of an API server that serves the kinds, apart from those left out. "calico-apiserver" leaves out the
// group in which Calico's API server keeps what it serves.
func served(c snapshot.Config, without ...string) discovery.DiscoveryInterface {
	lists := map[string]*metav1.APIResourceList{}
	for _, k := range snapshot.Kinds(c) {
		gv := k.GroupVersion().String()
		if lists[gv] == nil {
			lists[gv] = &metav1.APIResourceList{GroupVersion: gv}
		}
		if !strings.Contains(strings.Join(without, " "), k.Resource) {
			lists[gv].APIResources = append(lists[gv].APIResources, metav1.APIResource{Name: k.Resource, Kind: k.Kind})
		}
	}
	if c.Calico && !strings.Contains(strings.Join(without, " "), "calico-apiserver") {
		lists["behind"] = &metav1.APIResourceList{GroupVersion: "crd.projectcalico.org/v1", APIResources: []metav1.APIResource{{Name: "networkpolicies"}}}
	}
	f := &fake.FakeDiscovery{Fake: &clienttesting.Fake{}}
	for _, l := range lists {
		f.Resources = append(f.Resources, l)
	}
	return f
}

func TestDataPlanes(t *testing.T) {
	both := snapshot.Config{Calico: true, Istio: true}
	none := snapshot.Config{Absent: []string{"sidecars.networking.istio.io", "requestauthentications.security.istio.io", "wasmplugins.extensions.istio.io"}}
	for name, tc := range map[string]struct {
		client        discovery.DiscoveryInterface
		calico, istio syncconfig.Presence
		want          snapshot.Config
		refusal       string
	}{
		"if both are there, use both":                  {served(both), syncconfig.Required, syncconfig.Optional, both, ""},
		"if none is there and none required, use none": {served(snapshot.Config{}), syncconfig.Optional, syncconfig.Optional, none, ""},
		"if one is switched off, do not use it":        {served(both), syncconfig.Off, syncconfig.Optional, snapshot.Config{Istio: true}, ""},
		"if a required one is missing, refuse":         {served(snapshot.Config{Istio: true}), syncconfig.Required, syncconfig.Required, snapshot.Config{Istio: true}, "calico: required"},
		"if Calico's definitions are alone, know it": {served(both, "calico-apiserver"), syncconfig.Required, syncconfig.Optional,
			snapshot.Config{Calico: true, Istio: true, CalicoDefinitions: true}, ""},
		"if one is there in part, refuse": {served(both, "hostendpoints"), syncconfig.Optional, syncconfig.Optional, snapshot.Config{}, "not hostendpoints.projectcalico.org"},
	} {
		t.Run(name, func(t *testing.T) {
			c := syncconfig.Config{Calico: tc.calico, Istio: tc.istio}
			err := dataPlanes(tc.client, &c, slog.New(slog.DiscardHandler))
			if tc.refusal != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refusal) {
					t.Errorf("got %v, want a refusal with %q", err, tc.refusal)
				}
				return
			}
			if err != nil || !cmp.Equal(c.Snapshot, tc.want) {
				t.Errorf("got %+v, %v; want %+v", c.Snapshot, err, tc.want)
			}
		})
	}
}

func TestAnArrivingDataPlaneEndsTheProgram(t *testing.T) {
	both := snapshot.Config{Calico: true, Istio: true}
	log := slog.New(slog.DiscardHandler)
	for name, tc := range map[string]struct {
		client discovery.DiscoveryInterface
		config syncconfig.Config
		ends   bool
	}{
		"if one arrived, end":              {served(both), syncconfig.Config{Calico: syncconfig.Optional, Istio: syncconfig.Optional, Snapshot: snapshot.Config{Istio: true}}, true},
		"if what arrived is off, go on":    {served(both), syncconfig.Config{Calico: syncconfig.Off, Istio: syncconfig.Optional, Snapshot: snapshot.Config{Istio: true}}, false},
		"if one went away, go on":          {served(snapshot.Config{}), syncconfig.Config{Calico: syncconfig.Optional, Istio: syncconfig.Optional, Snapshot: both}, false},
		"if it cannot be told, go on":      {served(both, "tiers"), syncconfig.Config{Calico: syncconfig.Optional, Istio: syncconfig.Optional}, false},
		"if Calico's API server went, end": {served(both, "calico-apiserver"), syncconfig.Config{Calico: syncconfig.Required, Istio: syncconfig.Required, Snapshot: both}, true},
		"if all is as at the start, go on": {served(both), syncconfig.Config{Calico: syncconfig.Required, Istio: syncconfig.Required, Snapshot: both}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := (arrivals{tc.client, tc.config, log}).look(); (err != nil) != tc.ends {
				t.Errorf("got %v, want an end: %t", err, tc.ends)
			}
		})
	}
}
