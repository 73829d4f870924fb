package workloadclaim

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
)

// SelectorType is the type of every selector of the workload attestor as SPIRE sees it: the plugin's name.
const SelectorType = "keelson"

// Kind is the first part of a selector.
type Kind string

// The kinds of selector. Each one's value has one spelling only, see Validate.
const (
	KindNode           Kind = "node"           // node:<Kubernetes node name>
	KindNamespace      Kind = "ns"             // ns:<namespace>
	KindServiceAccount Kind = "sa"             // sa:<service account>
	KindPodName        Kind = "pod-name"       // pod-name:<pod>
	KindPodUID         Kind = "pod-uid"        // pod-uid:<pod UID>
	KindContainer      Kind = "container"      // container:<name of the container in the pod's spec>
	KindImageManifest  Kind = "image-manifest" // image-manifest:sha256:<hex>
	KindImageConfig    Kind = "image-config"   // image-config:sha256:<hex>
	KindSignedBy       Kind = "signed-by"      // signed-by:<verifier's name in the attestor's configuration>
	KindPrivileged     Kind = "privileged"     // privileged:true or privileged:false
	KindHostPID        Kind = "host-pid"       // host-pid:true or host-pid:false
	KindHostNetwork    Kind = "host-net"       // host-net:true or host-net:false
	KindHostIPC        Kind = "host-ipc"       // host-ipc:true or host-ipc:false
	KindHostPath       Kind = "host-path"      // host-path:true or host-path:false
	KindRuntime        Kind = "runtime"        // runtime:baseline or runtime:restricted

	KindCapability      Kind = "capability"        // capability:<name in lower case> or capability:none
	KindSeccomp         Kind = "seccomp"           // seccomp:unconfined, :confined, :runtime-default, :localhost, :localhost/<file>
	KindAppArmor        Kind = "apparmor"          // apparmor:, the same with the profile's name
	KindReadOnlyRoot    Kind = "read-only-root"    // read-only-root:true or read-only-root:false
	KindUser            Kind = "user"              // user:<ID in the container>
	KindUserNamespace   Kind = "user-namespace"    // user-namespace:true or user-namespace:false
	KindNoNewPrivileges Kind = "no-new-privileges" // no-new-privileges:true or no-new-privileges:false
	KindPIDsLimit       Kind = "pids-limit"        // pids-limit:<number>
	KindRuntimeClass    Kind = "runtime-class"     // runtime-class:<RuntimeClass of the pod>
	KindRuntimeHandler  Kind = "runtime-handler"   // runtime-handler:<handler of the pod's sandbox>
	KindSandbox         Kind = "sandbox"           // sandbox:runc, sandbox:gvisor or sandbox:kata
)

// The values of KindRuntime: levels of the Pod Security Standards, see package confined. What meets the second meets the first.
const (
	RuntimeBaseline   = "baseline"
	RuntimeRestricted = "restricted"
)

// maxSelector bounds a selector's text: the longest one is a pod's name, 253 characters, after its kind.
const maxSelector = 300

// Selector is one selector value, "kind:value"; its SPIRE type is SelectorType.
type Selector struct {
	Kind  Kind
	Value string
}

// NewSelector makes a selector and checks it.
func NewSelector(kind Kind, value string) (Selector, error) {
	s := Selector{Kind: kind, Value: value}
	return s, s.Validate()
}

// ParseSelector reads what String writes, and nothing else.
func ParseSelector(text string) (Selector, error) {
	if len(text) > maxSelector {
		return Selector{}, fmt.Errorf("workloadclaim: selector %s: %d characters, the limit is %d", quoteShort(text), len(text), maxSelector)
	}
	kind, value, ok := strings.Cut(text, ":")
	if !ok {
		return Selector{}, fmt.Errorf("workloadclaim: selector %s: want kind:value", quoteShort(text))
	}
	return NewSelector(Kind(kind), value)
}

// String is "kind:value".
func (s Selector) String() string { return string(s.Kind) + ":" + s.Value }

// Compare orders selectors by kind, then by value.
func (s Selector) Compare(other Selector) int {
	return cmp.Or(cmp.Compare(s.Kind, other.Kind), cmp.Compare(s.Value, other.Value))
}

// Validate refuses kinds that do not exist and values that their kind cannot have. All values are lower case, as
// Kubernetes names are; so no two selectors differ by case alone.
func (s Selector) Validate() error {
	check, ok := kinds[s.Kind]
	if !ok {
		return fmt.Errorf("workloadclaim: selector kind %s does not exist", quoteShort(string(s.Kind)))
	}
	if len(s.Value) > maxSelector-len(s.Kind)-1 {
		return fmt.Errorf("workloadclaim: selector %s %s: %d characters are too many", s.Kind, quoteShort(s.Value), len(s.Value))
	}
	if err := check(s.Value); err != nil {
		return fmt.Errorf("workloadclaim: selector %s: %w", s.Kind, err)
	}
	return nil
}

var kinds = map[Kind]func(string) error{
	KindNode:           subdomain,
	KindNamespace:      label,
	KindServiceAccount: subdomain,
	KindPodName:        subdomain,
	KindPodUID:         podUID,
	KindContainer:      label,
	KindImageManifest:  digestValue,
	KindImageConfig:    digestValue,
	KindSignedBy:       label,
	KindPrivileged:     boolean,
	KindHostPID:        boolean,
	KindHostNetwork:    boolean,
	KindHostIPC:        boolean,
	KindHostPath:       boolean,
	KindRuntime:        runtimeValue,

	KindCapability:      capability,
	KindSeccomp:         profileValue,
	KindAppArmor:        profileValue,
	KindReadOnlyRoot:    boolean,
	KindUser:            userID,
	KindUserNamespace:   boolean,
	KindNoNewPrivileges: boolean,
	KindPIDsLimit:       positive,
	KindRuntimeClass:    subdomain,
	KindRuntimeHandler:  label,
	KindSandbox:         sandboxValue,
}

// Kubernetes' own rules for names (k8s.io/apimachinery/pkg/util/validation: IsDNS1123Label, IsDNS1123Subdomain),
// written out so that the vocabulary needs the standard library alone.
var (
	labelRule     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	subdomainRule = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	podUIDRule    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
)

func label(v string) error {
	if len(v) > 63 || !labelRule.MatchString(v) {
		return fmt.Errorf("%s is not a DNS label (lower-case letters, digits and '-', at most 63)", quoteShort(v))
	}
	return nil
}

func subdomain(v string) error {
	if len(v) > 253 || !subdomainRule.MatchString(v) {
		return fmt.Errorf("%s is not a DNS subdomain (lower-case letters, digits, '-' and '.', at most 253)", quoteShort(v))
	}
	return nil
}

// podUID is an RFC 4122 UUID for a pod of the API and 32 hex digits for a static pod (the hash of its file).
func podUID(v string) error {
	if len(v) > 63 || !podUIDRule.MatchString(v) {
		return fmt.Errorf("%s is not a pod UID", quoteShort(v))
	}
	return nil
}

func digestValue(v string) error {
	_, err := parseDigest(v)
	return err
}

func boolean(v string) error {
	if v != "true" && v != "false" {
		return fmt.Errorf("%s is neither true nor false", quoteShort(v))
	}
	return nil
}

func runtimeValue(v string) error {
	if v != RuntimeBaseline && v != RuntimeRestricted {
		return fmt.Errorf("%s is neither %q nor %q", quoteShort(v), RuntimeBaseline, RuntimeRestricted)
	}
	return nil
}
