package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registries reads from the registries that the configuration lists.
type registries struct {
	allowed    []string // registry hosts, or repository prefixes: "registry.example:5000", "registry.example/team"
	insecure   map[string]bool
	mirrors    map[string][]string // by registry, in its full name
	signatures []name.Repository   // that hold other repositories' signatures
	hosts      *hosts
	puller     *puller

	mu      sync.Mutex
	pullers map[string]*puller // that log in with pull secrets, by these' fingerprint
}

func newRegistries(c Config) (*registries, error) {
	r := &registries{insecure: map[string]bool{}, mirrors: map[string][]string{}, pullers: map[string]*puller{}}
	var problems []error
	for _, host := range c.InsecureRegistries {
		if _, err := name.NewRegistry(host); err != nil {
			problems = append(problems, fmt.Errorf("image: insecure registry %s: %w", short(host), err))
		}
		r.insecure[host] = true
	}
	for _, prefix := range append(append([]string(nil), c.Registries...), c.InsecureRegistries...) {
		full, err := parsePrefix(prefix)
		if err != nil {
			problems = append(problems, fmt.Errorf("image: registry %s: %w", short(prefix), err))
			continue
		}
		r.allowed = append(r.allowed, full)
	}
	problems = append(problems, r.addMirrors(c.Mirrors), r.addSignatures(c.SignatureRepositories))
	hosts, err := newHosts(c, r)
	problems = append(problems, err)
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	r.hosts, r.puller = hosts, &puller{keychain: c.Keychain, hosts: hosts.client()}
	_, err = r.puller.current()
	return r, err
}

// parsePrefix reads "host", "host:port" or "host/repository/prefix", and refuses what no image's name could ever begin with.
func parsePrefix(prefix string) (string, error) {
	host, path, _ := strings.Cut(strings.TrimSuffix(prefix, "/"), "/")
	switch {
	case strings.Contains(prefix, "://"):
		return "", errors.New("want host, host:port or host/repository, without a scheme")
	case strings.ContainsAny(prefix, "*?"):
		return "", errors.New("want host, host:port or host/repository: there are no wildcards, a host stands for all of its repositories")
	case strings.ContainsAny(path, "@") || strings.Contains(path, ":"):
		return "", errors.New("want host, host:port or host/repository, without tag or digest")
	case host == "registry-1.docker.io":
		return "", errors.New("images are named docker.io, so write docker.io: registry-1.docker.io is only the machine that serves them")
	}
	registry, err := name.NewRegistry(host)
	if err != nil || host == "" {
		return "", fmt.Errorf("want host, host:port or host/repository: %w", err)
	}
	if registry.RegistryStr() == name.DefaultRegistry && path != "" && !strings.Contains(prefix[len(host)+1:], "/") {
		return "", fmt.Errorf("no image is named so: an official image is docker.io/library/%s, and all of an organisation's are docker.io/%s/", path, path)
	}
	if path != "" {
		if err := plainPath(path); err != nil {
			return "", err
		}
	}
	return strings.TrimSuffix(registry.RegistryStr()+"/"+path, "/"), nil
}

// plainPath refuses components that a server could resolve to another repository.
func plainPath(path string) error {
	for _, part := range strings.Split(path, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("repository %s: empty components, . and .. are refused: a server could resolve them to another repository", short(path))
		}
	}
	return nil
}

func (r *registries) addMirrors(mirrors map[string][]string) error {
	var problems []error
	for host, list := range mirrors {
		registry, err := name.NewRegistry(host)
		if err != nil || host == "" || strings.Contains(host, "/") {
			problems = append(problems, fmt.Errorf("image: mirrors of %s: want a registry's host", short(host)))
			continue
		}
		for _, mirror := range list {
			full, err := parsePrefix(mirror)
			if err != nil {
				problems = append(problems, fmt.Errorf("image: mirror %s of %s: %w", short(mirror), short(host), err))
				continue
			}
			r.mirrors[registry.RegistryStr()] = append(r.mirrors[registry.RegistryStr()], full)
		}
	}
	return errors.Join(problems...)
}

func (r *registries) addSignatures(repositories []string) error {
	var problems []error
	for _, text := range repositories {
		full, err := parsePrefix(text)
		if err == nil && !strings.Contains(full, "/") {
			err = errors.New("want host/repository")
		}
		var repo name.Repository
		if err == nil {
			repo, err = r.repository(full)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("image: signature repository %s: %w", short(text), err))
			continue
		}
		r.signatures = append(r.signatures, repo)
	}
	return errors.Join(problems...)
}

func (r *registries) repository(full string) (name.Repository, error) {
	host, _, _ := strings.Cut(full, "/")
	if r.insecure[host] {
		return name.NewRepository(full, name.Insecure)
	}
	return name.NewRepository(full)
}

// sources makes one source per repository that the question names and the configuration allows. Where a registry has mirrors,
// they are asked in its place.
func (r *registries) sources(q question, m *memory) []source {
	var out []source
	client := q.client
	if client == nil {
		client = r.puller
	}
	counts := func(repo name.Repository) bool { return r.allows(repo) && (q.scope == nil || q.scope.allows(repo)) }
	seen := map[string]bool{}
	others, first := &ration{left: q.patience}, func(ref name.Reference) bool { return ref.Context().Name() == q.first && counts(ref.Context()) }
	asked := slices.ContainsFunc(q.refs, first)
	for _, ref := range q.refs {
		repo := ref.Context()
		if seen[repo.Name()] || !counts(repo) {
			continue
		}
		seen[repo.Name()] = true
		for _, place := range r.places(repo) {
			var s source = remembering{&repository{repo: place, named: repo, puller: client}, m}
			if asked && repo.Name() != q.first {
				s = rationed{s, others}
			}
			out = append(out, s)
		}
	}
	return out
}

// places are where a repository's content is read: itself, or its mirrors.
func (r *registries) places(repo name.Repository) []name.Repository {
	mirrors := r.mirrors[repo.RegistryStr()]
	if len(mirrors) == 0 {
		return []name.Repository{repo}
	}
	var out []name.Repository
	for _, mirror := range mirrors {
		if place, err := r.repository(mirror + "/" + repo.RepositoryStr()); err == nil {
			out = append(out, place)
		}
	}
	return out
}

// signatureSources hold other repositories' signatures, and no images.
func (r *registries) signatureSources(m *memory) []source {
	var out []source
	for _, repo := range r.signatures {
		out = append(out, remembering{&repository{repo: repo, named: repo, puller: r.puller}, m})
	}
	return out
}

func (r *registries) allows(repo name.Repository) bool {
	if plainPath(repo.RepositoryStr()) != nil {
		return false
	}
	return within(repo.Name(), r.allowed)
}

// repository is a source: one repository of a registry.
type repository struct {
	repo   name.Repository
	named  name.Repository // as images' names have it: another one than repo where that is a mirror
	puller *puller
}

func (r *repository) describe() string { return "repository " + r.repo.Name() }

func (r *repository) roots(_ context.Context, q question) ([]string, error) {
	var out []string
	for _, ref := range q.refs {
		if ref.Context().Name() == r.named.Name() {
			out = append(out, ref.Identifier())
		}
	}
	return append(out, q.loose...), nil
}

// signatures asks for the referrers, by the API or by the tag that stands in for it, beside cosign's tag.
func (r *repository) signatures(ctx context.Context, subject string) ([]string, error) {
	out := []string{signatureTag(subject)}
	puller, err := r.puller.current()
	if err != nil {
		return out, err
	}
	ctx, wasCut := watchCut(ctx)
	list, err := remote.Referrers(r.repo.Digest(subject), remote.WithContext(ctx), remote.Reuse(puller))
	if err := notFound(err); errors.Is(err, errNotFound) {
		return out, nil
	} else if err != nil {
		return out, fmt.Errorf("image: %s: referrers of %s: %w", r.describe(), short(subject), err)
	}
	raw, err := list.RawManifest()
	if err != nil {
		return out, fmt.Errorf("image: %s: referrers of %s: %w", r.describe(), short(subject), err)
	}
	listed, err := referrers(raw)
	if err == nil && wasCut() {
		err = fmt.Errorf("more than %d pages or %d entries, the rest is not read", maxPages, maxChildren)
	}
	if err != nil {
		err = fmt.Errorf("image: %s: referrers of %s: %w", r.describe(), short(subject), err)
	}
	return append(out, listed...), err
}

func (r *repository) manifest(ctx context.Context, ref string) ([]byte, error) {
	var reference name.Reference = r.repo.Tag(ref)
	if strings.HasPrefix(ref, "sha256:") {
		reference = r.repo.Digest(ref)
	}
	puller, err := r.puller.current()
	if err != nil {
		return nil, err
	}
	got, err := puller.Get(ctx, reference)
	if err != nil {
		return nil, notFound(err)
	}
	return got.Manifest, nil
}

func (r *repository) blob(ctx context.Context, digest string) (raw []byte, err error) {
	puller, err := r.puller.current()
	if err != nil {
		return nil, err
	}
	layer, err := puller.Layer(ctx, r.repo.Digest(digest))
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

// notFound tells "the registry does not have it" from every other failure. All of those mean that it was not heard.
func notFound(err error) error {
	var response *transport.Error
	if errors.As(err, &response) && response.StatusCode == http.StatusNotFound {
		return errNotFound
	}
	if err == nil {
		return nil
	}
	return unheard{err}
}

// puller makes the client for all registries. A client keeps what it logged in with, so there is a new one for new credentials.
type puller struct {
	keychain authn.Keychain
	hosts    http.RoundTripper

	mu      sync.Mutex
	client  *remote.Puller
	version uint64 // of the credentials that client logs in with
}

// versioned is a Keychain whose credentials may change.
type versioned interface{ version() uint64 }

func (p *puller) current() (*remote.Puller, error) {
	var version uint64
	if v, ok := p.keychain.(versioned); ok {
		version = v.version()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil && p.version == version {
		return p.client, nil
	}
	var keychain authn.Keychain = anonymous{}
	if p.keychain != nil {
		keychain = p.keychain
	}
	client, err := remote.NewPuller(
		remote.WithAuthFromKeychain(keychain),
		remote.WithTransport(p.hosts),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 1, Steps: 2}),
	)
	if err != nil {
		return nil, err
	}
	p.client, p.version = client, version
	return client, nil
}

type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }
