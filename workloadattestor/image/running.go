package image

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// Running is what a runtime (or a Pod's status) says about the image of one container. All of it is text of a peer;
// Check decides what it means.
type Running struct {
	// ID is CRI's image_id, where the runtime gives one: with containerd and CRI-O the digest of the image's
	// config, "sha256:<hex>" or bare hex. It is the image's identity if it is set.
	ID string
	// Ref is CRI's image_ref or a container status's imageID: "repository@sha256:<hex>" (one repo digest among
	// several; a manifest's or an index's), or a bare digest when the image was imported. It is the identity
	// when ID is empty, and a hint where to look otherwise.
	Ref string
	// Asked is the reference in the pod's spec, where it is known. Its repository is asked first, and with the most time: the others
	// are names that every pod with the same image on the node may have given it.
	Asked string
	// Name is what the runtime calls the image, "repository:tag". A hint where to look, never an identity.
	Name string
	// Hints are more references of the image, with tag or digest.
	Hints []string
	// LayoutEntry, where it is not empty, is the digest of the only entry of OCI layouts at which the image is looked for.
	LayoutEntry string
	// Owner says whose pod runs it: what counts for its namespace, and with which secrets it is pulled.
	Owner Owner
	// Platform of the node that runs it, where that is not the checker's own (Config.Platform).
	Platform Platform
}

// maxHints bounds the references of one image; runtimes list one per repository that the image was pulled from.
const maxHints = 16

// maxReference bounds one reference's text: a registry's name, a repository (255), a tag (128) or a digest.
const maxReference = 640

// identity is a digest of which nobody has said yet what kind it is: it becomes a typed digest only when a document
// with that digest, or with a config of that digest, was read.
type identity string

// question is Running, parsed.
type question struct {
	id       identity
	refs     []name.Reference // where to look: tags and digests, without doubles, in order of preference
	platform Platform         // the node's; zero leaves it to the checker's configuration
	entry    string           // the only entry of layouts that is read, "" for all
	loose    []string         // digests without a repository: may be asked of every source
	patience time.Duration    // with all other repositories together
	first    string           // the repository that is asked first, "" where that is not known
	scope    *scope           // what counts
	client   *puller          // that logs in for the owner
	login    string           // fingerprint of the owner's credentials, "" for none
}

// key is the same for equal questions.
func (q question) key() string {
	parts := append([]string{string(q.id), q.scope.name, q.login, q.entry, q.first, q.platform.OS, q.platform.Architecture, q.platform.Variant}, q.loose...)
	for _, r := range q.refs {
		parts = append(parts, r.Name())
	}
	return strings.Join(parts, "\n")
}

func parseRunning(r Running, insecure map[string]bool) (question, error) {
	q := question{platform: r.Platform, entry: r.LayoutEntry}
	q.ask(r.Asked, insecure)
	for _, text := range []string{r.ID, r.Ref} {
		digest, ref, err := parseReported(text, insecure)
		if err != nil && q.id != "" {
			continue // the digest is known: what cannot be parsed is only a hint less
		}
		if err != nil {
			return question{}, err
		}
		if digest == "" {
			continue
		}
		if q.id == "" {
			q.id = identity(digest)
		}
		q.addHint(digest, ref)
	}
	if q.id == "" {
		return question{}, errors.New("image: the runtime gives no digest for the image, neither image_id nor image_ref")
	}
	for _, text := range append(r.Hints[:min(len(r.Hints), maxHints):min(len(r.Hints), maxHints)], r.Name) {
		if ref := hint(text, insecure); ref != nil {
			q.addHint("", ref)
		}
	}
	return q, nil
}

// ask has the repository of a reference asked first.
func (q *question) ask(text string, insecure map[string]bool) {
	if ref := hint(text, insecure); ref != nil {
		q.first = ref.Context().Name()
		q.addHint("", ref)
	}
}

// hint is the reference in a text, nil where it has none: that is only a hint less, since a digest is what counts.
func hint(text string, insecure map[string]bool) name.Reference {
	if _, isDigest := bareDigest(text); isDigest || text == "" || len(text) > maxReference {
		return nil
	}
	ref, err := parseReference(text, insecure)
	if err != nil {
		return nil
	}
	return ref
}

func (q *question) addHint(digest string, ref name.Reference) {
	if ref == nil {
		q.loose = append(q.loose, digest)
		return
	}
	for _, have := range q.refs {
		if have.Name() == ref.Name() {
			return
		}
	}
	q.refs = append(q.refs, ref)
}

// parseReported reads a digest, or a repository with a digest, as runtimes and kubelets write them: "sha256:<hex>",
// "<hex>" (CRI-O), "repo@sha256:<hex>", and with dockershim's old prefixes. Text without a digest yields nothing.
func parseReported(text string, insecure map[string]bool) (string, name.Reference, error) {
	text = strings.TrimPrefix(strings.TrimPrefix(text, "docker-pullable://"), "docker://")
	if text == "" {
		return "", nil, nil
	}
	if len(text) > maxReference {
		return "", nil, fmt.Errorf("image: reference %s has %d characters, the limit is %d", short(text), len(text), maxReference)
	}
	if digest, ok := bareDigest(text); ok {
		return digest, nil, nil
	}
	if !strings.Contains(text, "@") {
		return "", nil, nil
	}
	ref, err := parseReference(text, insecure)
	if err != nil {
		return "", nil, err
	}
	digest, ok := ref.(name.Digest)
	if !ok {
		return "", nil, nil
	}
	if _, ok := bareDigest(digest.DigestStr()); !ok {
		return "", nil, fmt.Errorf("image: reference %s: want a lower-case sha256 digest", short(text))
	}
	return digest.DigestStr(), ref, nil
}

func bareDigest(text string) (string, bool) {
	digits := strings.TrimPrefix(text, "sha256:")
	if len(digits) != 64 || strings.ToLower(digits) != digits {
		return "", false
	}
	if _, err := hex.DecodeString(digits); err != nil {
		return "", false
	}
	return "sha256:" + digits, true
}

func parseReference(text string, insecure map[string]bool) (name.Reference, error) {
	ref, err := name.ParseReference(text, name.WithDefaultTag("latest"))
	if err != nil {
		return nil, fmt.Errorf("image: reference %s: %w", short(text), err)
	}
	if err := plainPath(ref.Context().RepositoryStr()); err != nil {
		return nil, fmt.Errorf("image: reference %s: %w", short(text), err)
	}
	if !insecure[ref.Context().RegistryStr()] {
		return ref, nil
	}
	return name.ParseReference(text, name.WithDefaultTag("latest"), name.Insecure)
}
