package main

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// showing is TLS with a client certificate: the pod's own ("svid"), or whatever the caller has made. Who answers is not looked at:
// the question is whom the other end takes us for. With TLS 1.2 it says so within the handshake.
func showing(ctx context.Context, identity string) (*tls.Config, error) {
	cert, err := certificate(ctx, identity)
	if err != nil {
		return nil, fmt.Errorf("workload: certificate: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, // #nosec G402 -- see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }, // whatever authorities are asked for
	}, nil
}

func certificate(ctx context.Context, identity string) (tls.Certificate, error) {
	if identity == "svid" {
		got, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(agentSocket))
		if err != nil {
			return tls.Certificate{}, err
		}
		cert := tls.Certificate{PrivateKey: got.PrivateKey}
		for _, c := range got.Certificates {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
		return cert, nil
	}
	both, err := base64.StdEncoding.DecodeString(identity)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(both, both) // each takes the blocks of its kind
}
