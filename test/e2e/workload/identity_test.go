package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/cluster/mesh"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// word is a certificate of an authority's for a SPIFFE ID, as -identity takes it, and the authority.
func word(t *testing.T, id string) (string, *x509.CertPool) {
	t.Helper()
	authority, err := mesh.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	both, err := authority.Impersonate(id)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority.Root()) {
		t.Fatal("no root")
	}
	return base64.StdEncoding.EncodeToString(both), roots
}

func TestACertificateIsShownAndBelievedByWhoKnowsItsAuthority(t *testing.T) {
	const id = "spiffe://example.org/ns/shop/sa/frontend"
	identity, roots := word(t, id)
	other, _ := word(t, id)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if uris := r.TLS.PeerCertificates[0].URIs; len(uris) != 1 || uris[0].String() != id {
			t.Errorf("it shows %v", uris)
		}
		http.Error(w, "RBAC: access denied", http.StatusForbidden)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	defer server.Close()
	for name, c := range map[string]struct {
		identity string
		want     said.Kind
	}{"its authority is known": {identity, said.Status}, "another authority's, with the same name": {other, said.TLS}, "nothing readable": {"???", said.Other}} {
		t.Run(name, func(t *testing.T) {
			p := prober{method: http.MethodGet, timeout: 5 * time.Second, identity: c.identity}
			if got := p.try(t.Context(), server.URL); got.Kind != c.want {
				t.Errorf("%+v, want %q", got, c.want)
			}
		})
	}
}
