package mesh

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Authority signs one certificate: that of istiod's own port, which proxies ask for their configuration. Workloads never get
// one from it: their certificates are SPIRE's. A test that wants to see it refused can (Impersonate).
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// rootConfigMap and rootKey are where pilot-agent expects the certificate under which istiod's stands.
const (
	rootConfigMap = "istio-ca-root-cert"
	rootKey       = "root-cert.pem"
)

// NewAuthority makes an authority for one run.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("mesh: authority: %w", err)
	}
	t, err := template("keelson test istiod authority")
	if err != nil {
		return nil, err
	}
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("mesh: authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("mesh: authority: %w", err)
	}
	return &Authority{cert, key}, nil
}

func template(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("mesh: serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}, nil
}

// Root is the authority's certificate in PEM.
func (a *Authority) Root() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Distribute returns, for each namespace, the ConfigMap from which its proxies take the root. istiod writes these itself only
// when it is a certificate authority, which it is not here.
func (a *Authority) Distribute(namespaces ...string) ([]*unstructured.Unstructured, error) {
	var list objects
	for _, ns := range namespaces {
		list.add(&corev1.ConfigMap{
			TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: rootConfigMap},
			Data: map[string]string{rootKey: string(a.Root())},
		})
	}
	return list.out, list.err
}

// Impersonate issues what an istiod that is a certificate authority would give a workload: a client certificate for a SPIFFE ID, and its
// key, in PEM. Nobody in this mesh is to believe it.
func (a *Authority) Impersonate(id string) ([]byte, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	t, err := template("")
	if err != nil {
		return nil, err
	}
	t.URIs, t.KeyUsage, t.ExtKeyUsage = []*url.URL{uri}, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	cert, key, err := a.issue(t)
	return append(cert, key...), err
}

// serving issues istiod's certificate, for its names and for an address, if that is valid.
func (a *Authority) serving(address netip.Addr, names ...string) (cert, key []byte, err error) {
	t, err := template(names[0])
	if err != nil {
		return nil, nil, err
	}
	t.DNSNames, t.KeyUsage, t.ExtKeyUsage = names, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if address.IsValid() {
		t.IPAddresses = []net.IP{address.AsSlice()}
	}
	return a.issue(t)
}

// issue signs a certificate for a new key, both in PEM.
func (a *Authority) issue(t *x509.Certificate) (cert, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: issue: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, signer.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: issue: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: issue: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), nil
}
