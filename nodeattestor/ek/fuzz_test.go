package ek_test

import (
	"encoding/pem"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/ek"
)

func FuzzParseRevoked(f *testing.F) {
	f.Add([]byte("revoked:\n- ekHash: " + hash("a") + "\n  reason: stolen\n"))
	f.Add([]byte("revoked: []\n"))
	f.Add([]byte("revoked: &a [*a]"))
	f.Add([]byte("revoked:\n- ekHash: " + hash("a") + "\n- ekHash: " + hash("a") + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		revoked, err := ek.ParseRevoked(data)
		if err != nil && len(revoked) > 0 {
			t.Errorf("%d revoked EKs beside the error %v", len(revoked), err)
		}
		if err == nil && len(revoked) > len(data)/64 {
			t.Errorf("%d revoked EKs in %d bytes", len(revoked), len(data))
		}
	})
}

func FuzzParseCertificates(f *testing.F) {
	der := []byte{0x30, 0x03, 0x02, 0x01, 0x00}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	f.Add([]byte("no certificate at all"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := ek.ParseCertificates(data)
		switch {
		case err != nil && len(certs) > 0:
			t.Errorf("%d certificates beside the error %v", len(certs), err)
		case err == nil && len(certs) == 0:
			t.Error("no certificate and no error: a file without any would trust nobody and not say so")
		}
		for _, c := range certs {
			if c == nil || len(c.Raw) == 0 {
				t.Error("an empty certificate")
			}
		}
	})
}
