package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	helpers "github.com/docker/docker-credential-helpers/credentials"
	"github.com/google/go-containerregistry/pkg/authn"
)

// Limits on a credential helper. Clouds' helpers ask a service of their own, whose tokens live for minutes to hours.
const (
	helperTimeout = 10 * time.Second
	helperKeep    = time.Minute
	maxHelperOut  = 64 << 10
	maxServers    = 256
)

// helper is a program that has credentials (docker/docker-credential-helpers, protocol of "get": the server's name on standard
// input, {"Username", "Secret"} on standard output). It is safe for concurrent use.
type helper struct {
	program string // absolute path

	mu      sync.Mutex
	servers map[string]*answerOfHelper
}

// answerOfHelper is what a helper said for one server. Its lock makes callers for one server wait for one run; others do not wait.
type answerOfHelper struct {
	mu     sync.Mutex
	config *authn.AuthConfig
	err    error
	at     time.Time
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// newHelper looks a helper up: docker-credential-<name> in PATH, or an absolute path.
func newHelper(text string) (*helper, error) {
	program := text
	switch {
	case filepath.IsAbs(text):
	case helperName.MatchString(text):
		program = "docker-credential-" + text
	default:
		return nil, fmt.Errorf("helper %s: want a name, for docker-credential-<name> in PATH, or an absolute path", short(text))
	}
	found, err := exec.LookPath(program)
	if err == nil && !filepath.IsAbs(found) {
		err = errors.New("it is in a relative folder of PATH")
	}
	if err != nil {
		return nil, fmt.Errorf("helper %s cannot be run: %w", short(text), err)
	}
	return &helper{program: found, servers: map[string]*answerOfHelper{}}, nil
}

// errNoCredentials means that a helper answered that it has none for the server.
var errNoCredentials = errors.New("it has no credentials for this registry")

// get asks the helper, at most once in helperKeep for each server.
func (h *helper) get(ctx context.Context, server string) (*authn.AuthConfig, error) {
	h.mu.Lock()
	answer, ok := h.servers[server]
	if !ok {
		if len(h.servers) >= maxServers {
			clear(h.servers)
		}
		answer = &answerOfHelper{}
		h.servers[server] = answer
	}
	h.mu.Unlock()
	answer.mu.Lock()
	defer answer.mu.Unlock()
	if !answer.at.IsZero() && time.Since(answer.at) < helperKeep && (answer.err == nil || errors.Is(answer.err, errNoCredentials)) {
		return answer.config, answer.err
	}
	answer.config, answer.err = h.run(ctx, server)
	answer.at = time.Now()
	return answer.config, answer.err
}

func (h *helper) run(ctx context.Context, server string) (*authn.AuthConfig, error) {
	out, err := runBounded(ctx, runLimits{helperTimeout, maxHelperOut}, []byte(server), nil, h.program, "get")
	switch {
	case err != nil && helpers.IsErrCredentialsNotFoundMessage(strings.TrimSpace(string(out))):
		return nil, errNoCredentials
	case err != nil:
		return nil, err // the exit code; what it wrote may hold secrets
	}
	var got struct{ ServerURL, Username, Secret string }
	if _, err := decodeStrict(out, &got); err != nil || got.Secret == "" {
		return nil, errors.New(`its answer is not {"Username": …, "Secret": …}`)
	}
	if got.Username == "<token>" { // an OAuth 2 refresh token, by the protocol
		return &authn.AuthConfig{Username: got.Username, IdentityToken: got.Secret}, nil
	}
	return &authn.AuthConfig{Username: got.Username, Password: got.Secret}, nil
}

// boundedBuffer takes up to limit bytes, and calls full when there are more. It does not embed its buffer, whose ReadFrom has no
// limit and which io.Copy would prefer.
type boundedBuffer struct {
	buffer bytes.Buffer
	limit  int
	over   bool
	full   func()
}

// Write never fails before the limit.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	if b.buffer.Len()+len(p) > b.limit {
		b.over = true
		b.full()
		return 0, errors.New("too much output")
	}
	return b.buffer.Write(p)
}

// helped are credentials that a helper has. named says that the configuration names the registry, so that "it has none" is an
// error; a store that is asked for every registry may have none for some.
type helped struct {
	helper *helper
	server string
	named  bool
}

// Authorization implements authn.Authenticator.
func (h helped) Authorization() (*authn.AuthConfig, error) {
	return h.AuthorizationContext(context.Background())
}

// AuthorizationContext implements authn.ContextAuthenticator. An error holds no secret.
func (h helped) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	config, err := h.helper.get(ctx, h.server)
	if errors.Is(err, errNoCredentials) && !h.named {
		return &authn.AuthConfig{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image: credentials for %s from %s: %w", short(h.server), h.helper.program, err)
	}
	return config, nil
}
