package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registries reads from the registries that the configuration lists.
type registries struct {
	allowed  []string // registry hosts, or repository prefixes: "registry.example:5000", "registry.example/team"
	insecure map[string]bool
	puller   *remote.Puller
}

func newRegistries(allowed, insecure []string, keychain authn.Keychain) (*registries, error) {
	r := &registries{insecure: map[string]bool{}}
	var problems []error
	for _, host := range insecure {
		if _, err := name.NewRegistry(host); err != nil {
			problems = append(problems, fmt.Errorf("image: insecure registry %s: %w", short(host), err))
		}
		r.insecure[host] = true
	}
	for _, prefix := range append(append([]string(nil), allowed...), insecure...) {
		host, path, _ := strings.Cut(strings.TrimSuffix(prefix, "/"), "/")
		registry, err := name.NewRegistry(host)
		if err != nil || host == "" {
			problems = append(problems, fmt.Errorf("image: registry %s: want host, host:port or host/repository: %w", short(prefix), err))
			continue
		}
		r.allowed = append(r.allowed, strings.TrimSuffix(registry.RegistryStr()+"/"+path, "/"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if keychain == nil {
		keychain = anonymous{}
	}
	var err error
	r.puller, err = remote.NewPuller(
		remote.WithAuthFromKeychain(keychain),
		remote.WithTransport(&boundedTransport{insecure: r.insecure, base: baseTransport()}),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 1, Steps: 2}),
	)
	return r, err
}

// sources makes one source per repository that the question names and the configuration allows.
func (r *registries) sources(q question) []source {
	var out []source
	seen := map[string]bool{}
	for _, ref := range q.refs {
		repo := ref.Context()
		if seen[repo.Name()] || !r.allows(repo) {
			continue
		}
		seen[repo.Name()] = true
		out = append(out, &repository{repo: repo, puller: r.puller})
	}
	return out
}

func (r *registries) allows(repo name.Repository) bool {
	for _, prefix := range r.allowed {
		if repo.Name() == prefix || strings.HasPrefix(repo.Name(), prefix+"/") {
			return true
		}
	}
	return false
}

// repository is a source: one repository of a registry.
type repository struct {
	repo   name.Repository
	puller *remote.Puller
}

func (r *repository) describe() string { return "repository " + r.repo.Name() }

func (r *repository) roots(_ context.Context, q question) ([]string, error) {
	var out []string
	for _, ref := range q.refs {
		if ref.Context().Name() == r.repo.Name() {
			out = append(out, ref.Identifier())
		}
	}
	return append(out, q.loose...), nil
}

func (r *repository) manifest(ctx context.Context, ref string) ([]byte, error) {
	var reference name.Reference = r.repo.Tag(ref)
	if strings.HasPrefix(ref, "sha256:") {
		reference = r.repo.Digest(ref)
	}
	got, err := r.puller.Get(ctx, reference)
	if err != nil {
		return nil, notFound(err)
	}
	return got.Manifest, nil
}

func (r *repository) blob(ctx context.Context, digest string) (raw []byte, err error) {
	layer, err := r.puller.Layer(ctx, r.repo.Digest(digest))
	if err != nil {
		return nil, notFound(err)
	}
	body, err := layer.Compressed()
	if err != nil {
		return nil, notFound(err)
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	return io.ReadAll(io.LimitReader(body, maxBlob+1))
}

// notFound tells "the registry does not have it" from every other failure.
func notFound(err error) error {
	var response *transport.Error
	if errors.As(err, &response) && response.StatusCode == http.StatusNotFound {
		return errNotFound
	}
	return err
}

type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

func baseTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 5 * time.Second,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   4,
		ForceAttemptHTTP2:     true,
	}
}

// boundedTransport refuses plain HTTP, also after a redirect or for a token, except to hosts that the configuration
// lists, and bounds every answer. go-containerregistry would fall back to HTTP for private addresses by itself.
type boundedTransport struct {
	insecure map[string]bool
	base     http.RoundTripper
}

func (t *boundedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !t.insecure[req.URL.Host] {
		return nil, fmt.Errorf("image: %s would be asked without TLS; list it in insecure_registries if that is meant", req.URL.Host)
	}
	response, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	response.Body = &boundedBody{ReadCloser: response.Body, left: maxDocument}
	return response, nil
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("image: registry's answer is larger than %d bytes", maxDocument)
	}
	return n, err
}
