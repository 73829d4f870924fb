package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	urlpath "path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/net/publicsuffix"
)

// servants are the hosts to which well-known registries send their clients, for tokens and blobs, as their documentation has
// them. A "*." stands for any number of labels.
var servants = map[string][]string{
	"index.docker.io": {"auth.docker.io", "registry-1.docker.io", "production.cloudflare.docker.com", "*.r2.cloudflarestorage.com"},
	"ghcr.io":         {"pkg-containers.githubusercontent.com"},
	"quay.io":         {"*.quay.io", "quayio-production-s3.s3.amazonaws.com"},
	"registry.k8s.io": {"*.pkg.dev", "*.amazonaws.com"},
	"gcr.io":          {"storage.googleapis.com"},
	"pkg.dev":         {"storage.googleapis.com"},
	"amazonaws.com":   {"*.s3.amazonaws.com", "*.amazonaws.com"},
	"public.ecr.aws":  {"*.cloudfront.net"},
	"azurecr.io":      {"*.blob.core.windows.net"},
	"gitlab.com":      {"gitlab.com", "*.googleapis.com"},
}

// hosts is the transport to registries. It asks only hosts that the configuration names, their servants, and no one without TLS
// whom it does not list for that; go-containerregistry would fall back to HTTP for private addresses by itself. It bounds every
// answer. A host that is away or asks to be left alone is left alone for a while, so that its images do not hold up others'.
type hosts struct {
	insecure map[string]bool
	known    []string // hosts of registries, mirrors and signature repositories
	extra    []string // hosts of redirect_hosts
	base     http.RoundTripper
	own      map[string]http.RoundTripper // of hosts with CAs of their own
	now      func() time.Time
	pause    time.Duration // for a host that is away

	away  pauses // hosts that do not answer
	mu    sync.Mutex
	lacks map[string]time.Time // repositories without the referrers API, and until when that is taken for granted
}

// client is the transport of those who log in with the same credentials. Registries count requests by account, so a host that
// has had enough of one account's is left alone by that one only: its owner could else keep all others from their images.
type client struct {
	*hosts
	busy pauses // hosts that asked to be left alone
}

func (h *hosts) client() *client { return &client{hosts: h} }

// pauses are hosts that are not asked for a while. The zero value is none. It is safe for concurrent use.
type pauses struct {
	mu sync.Mutex
	of map[string]pause
}

type pause struct {
	until time.Time
	why   string
}

// Bounds on what is remembered of hosts.
const (
	maxPause  = time.Hour
	lacksTTL  = 6 * time.Hour
	maxHosts  = 4096
	busyPause = time.Minute // for "too many requests" that does not say for how long
)

func newHosts(c Config, r *registries) (*hosts, error) {
	h := &hosts{insecure: r.insecure, base: baseTransport(nil), own: map[string]http.RoundTripper{}, now: c.Now,
		pause: orDefault(c.FailureTTL, DefaultFailureTTL), lacks: map[string]time.Time{}}
	note := func(full string) {
		host, _, _ := strings.Cut(full, "/")
		h.known = append(h.known, host)
	}
	for _, full := range r.allowed {
		note(full)
	}
	for _, mirrors := range r.mirrors {
		for _, full := range mirrors {
			note(full)
		}
	}
	for _, repo := range r.signatures {
		note(repo.Name())
	}
	var problems []error
	for _, host := range c.RedirectHosts {
		if strings.ContainsAny(host, "/ ") || host == "" || host == "*" || strings.Contains(strings.TrimPrefix(host, "*."), "*") {
			problems = append(problems, fmt.Errorf("image: redirect host %s: want host, host:port or *.domain", short(host)))
		}
		h.extra = append(h.extra, host)
	}
	for host, pem := range c.RegistryCAs {
		registry, err := name.NewRegistry(host)
		pool := x509.NewCertPool()
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			problems = append(problems, fmt.Errorf("image: CA certificates of registry %s: want a registry's host, and PEM blocks \"CERTIFICATE\"", short(host)))
			continue
		}
		h.own[registry.RegistryStr()] = baseTransport(pool)
	}
	return h, errors.Join(problems...)
}

func baseTransport(pool *x509.CertPool) http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 5 * time.Second,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   4,
		MaxConnsPerHost:       16,
		ForceAttemptHTTP2:     true,
	}
}

// RoundTrip sends one request, also of a redirect or for a token.
func (h *client) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Host
	if req.URL.Scheme != "https" && !h.insecure[host] {
		return nil, fmt.Errorf("image: %s would be asked without TLS; list it in insecure_registries (--insecure of keelson image verify) if that is meant", host)
	}
	if !h.allows(host) {
		return nil, fmt.Errorf("image: a registry sends its client to %s, which is neither a configured registry nor one of its known hosts; list it in redirect_hosts if that is meant", host)
	}
	for _, p := range []*pauses{&h.away, &h.busy} {
		if err := p.rests(host, h.now()); err != nil {
			return nil, err
		}
	}
	repository, isReferrers := referrersOf(req)
	if isReferrers && h.lacksReferrers(repository) {
		return absent(req), nil
	}
	base := h.base
	if own, ok := h.own[host]; ok {
		base = own
	}
	ask := func(req *http.Request) (*http.Response, error) {
		response, err := base.RoundTrip(req)
		if err != nil {
			h.silent(req.Context(), host, err)
			return nil, err
		}
		h.heed(host, response)
		response.Body = &boundedBody{ReadCloser: response.Body, left: maxDocument}
		return response, nil
	}
	response, err := ask(req)
	if err != nil || !isReferrers {
		return response, err
	}
	if response.StatusCode == http.StatusNotFound {
		h.noteLack(repository)
	}
	return whole(response, ask)
}

// allows tells whether a host may be asked: a configured one, one in the same registered domain (a registry's token service), a
// well-known registry's servant, or one of redirect_hosts.
func (h *hosts) allows(host string) bool {
	if slices.Contains(h.known, host) || slices.ContainsFunc(h.extra, func(p string) bool { return matchesHost(p, host) }) {
		return true
	}
	for _, known := range h.known {
		if domain := registeredDomain(known); domain != "" && domain == registeredDomain(host) {
			return true
		}
		for registry, list := range servants {
			if (known == registry || strings.HasSuffix(known, "."+registry)) &&
				slices.ContainsFunc(list, func(p string) bool { return matchesHost(p, host) }) {
				return true
			}
		}
	}
	return false
}

func matchesHost(pattern, host string) bool {
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(host, suffix)
	}
	return pattern == host
}

// registeredDomain is the part of a name that someone registered, "example.co.uk". It is "" for addresses, for names with a
// port and for names that are not under a public suffix, such as a cluster's own.
func registeredDomain(host string) string {
	if strings.Contains(host, ":") || net.ParseIP(host) != nil {
		return ""
	}
	if _, icann := publicsuffix.PublicSuffix(host); !icann {
		return ""
	}
	domain, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil {
		return ""
	}
	return domain
}

func (p *pauses) rests(host string, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest, ok := p.of[host]
	if !ok || !now.Before(rest.until) {
		return nil
	}
	return fmt.Errorf("image: %s is not asked again before %s: %s", host, rest.until.UTC().Format(time.RFC3339), rest.why)
}

func (p *pauses) leave(host string, until time.Time, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil || len(p.of) >= maxHosts {
		p.of = map[string]pause{}
	}
	p.of[host] = pause{until: until, why: why}
}

// silent leaves a host alone that does not answer at all. A caller that hung up says nothing about the host.
func (h *hosts) silent(ctx context.Context, host string, err error) {
	var network net.Error
	if ctx.Err() == nil && errors.As(err, &network) {
		h.away.leave(host, h.now().Add(min(h.pause, maxPause)), err.Error())
	}
}

// heed honours "too many requests" (RFC 6585, section 4) and Retry-After (RFC 9110, section 10.2.3).
func (h *client) heed(host string, response *http.Response) {
	after := response.Header.Get("Retry-After")
	busy := response.StatusCode == http.StatusTooManyRequests
	if !busy && (response.StatusCode != http.StatusServiceUnavailable || after == "") {
		return
	}
	d := busyPause
	if seconds, err := strconv.Atoi(after); err == nil && seconds >= 0 {
		d = time.Duration(min(seconds, int(maxPause/time.Second))) * time.Second
	} else if at, err := http.ParseTime(after); err == nil {
		d = at.Sub(h.now())
	}
	h.busy.leave(host, h.now().Add(min(d, maxPause)), response.Status)
}

// referrersOf tells a question to the referrers API, and of which repository.
func referrersOf(req *http.Request) (string, bool) {
	dir := urlpath.Dir(req.URL.Path)
	if urlpath.Base(dir) != "referrers" {
		return "", false
	}
	return req.URL.Host + urlpath.Dir(dir), true
}

func (h *hosts) lacksReferrers(repository string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now().Before(h.lacks[repository])
}

// noteLack remembers that a registry has no referrers API: one that has it answers with an empty list (OCI distribution spec 1.1,
// "Listing Referrers").
func (h *hosts) noteLack(repository string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lacks) >= maxHosts {
		clear(h.lacks)
	}
	h.lacks[repository] = h.now().Add(lacksTTL)
}

func absent(req *http.Request) *http.Response {
	return &http.Response{Status: "404 Not Found", StatusCode: http.StatusNotFound, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: http.NoBody, Request: req}
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
