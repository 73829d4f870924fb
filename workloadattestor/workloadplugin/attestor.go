package workloadplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"

	"github.com/keelson-project/keelson/workloadattestor/confined"
	"github.com/keelson-project/keelson/workloadattestor/image"
	"github.com/keelson-project/keelson/workloadattestor/pod"
	"github.com/keelson-project/keelson/workloadattestor/procinfo"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// attestor is one configuration put to work.
type attestor struct {
	node    string
	proc    procinfo.Proc
	runtime *runtime.Client
	// containers are what it said of those that ran.
	containers containers
	pods       *pod.Lookup // nil when no API is configured
	images     *image.Checker
	own        ownPaths
	// snapshotters are trusted with images, beside unpacking.
	snapshotters []string
	// credentials are images' for registries; nil when none are configured.
	credentials *image.CredentialsFile
	closers     []func() error

	cgroups string   // where the cgroup file systems are
	brokers []string // SPIFFE IDs of brokers that may refer to workloads
	reviews reviewer // of each reference; nil where the configuration leaves them out
	socket  string   // of the runtime
	listen  string   // address of metrics and health, "" for none
}

// outcome is what attesting one process came to.
type outcome struct {
	container string // ID, when the process is in one
	notOurs   error  // why there are no claims: not a container, or not this runtime's
	claims    workloadclaim.Claims
	selectors []string
	absent    []string // what was not proved, and why
	owner     image.Owner
	asked     map[string]string // images in the pod's spec, by the names of its containers
}

// errRefused marks what a process must not have: evidence that contradicts itself. All other errors mean that something
// could not be asked.
var errRefused = errors.New("refused")

// attest follows the steps of package workloadattestor's documentation. may refuses a broker the process's pod.
func (a *attestor) attest(ctx context.Context, pid int32, may permission) (out outcome, err error) {
	process, err := a.proc.Pin(pid)
	if err != nil {
		return outcome{}, refused(err)
	}
	defer func() { err = errors.Join(err, process.Close()) }()
	membership, err := process.Membership()
	if errors.Is(err, procinfo.ErrNotContainer) {
		return outcome{notOurs: err}, nil
	}
	if err != nil {
		return outcome{}, refused(err)
	}
	out.container = membership.Container
	container, err := a.container(ctx, membership.Container)
	switch {
	case errors.Is(err, runtime.ErrUnknown):
		out.notOurs = err
		return out, nil
	case errors.Is(err, runtime.ErrNotYet):
		return out, err
	case err != nil:
		return out, runtimeError(err)
	}
	if err := membership.Within(container.CgroupsPath); err != nil {
		return out, refused(err)
	}
	out.claims = claimsOf(a.node, container)
	if err := may(ctx, container.Namespace, container.PodName); err != nil {
		return out, err
	}
	// The limit only adds a selector, and agents need not see the cgroup file systems.
	if limit, err := process.PIDsLimit(a.cgroups); err == nil && out.claims.Sandbox != workloadclaim.SandboxKata {
		out.claims.Posture.PIDsLimit = limit
	}
	out.owner = image.Owner{Namespace: container.Namespace}
	mounted := a.own.foreign(container)
	out.addMounts(mounted)
	if facts, ok := out.lookUp(ctx, a.pods); ok {
		out.addPod(facts, container, mounted)
	}
	out.addRunning(ctx, a, container)
	if err := process.Recheck(); err != nil {
		return out, refused(err)
	}
	return out, out.spell()
}

// container asks the runtime about a container, or remembers what it said.
func (a *attestor) container(ctx context.Context, id string) (runtime.Container, error) {
	if c, ok := a.containers.get(id); ok {
		return c, nil
	}
	c, err := a.runtime.Container(ctx, id)
	// Where a question about the image was not answered, the next one may be.
	if err == nil && c.HintsError == nil {
		a.containers.put(c)
	}
	return c, err
}

// permission refuses a broker a pod. The agent itself has every pod's.
type permission func(ctx context.Context, namespace, name string) error

// addRunning adds what is proved about the image that the container was made from.
func (o *outcome) addRunning(ctx context.Context, a *attestor, container runtime.Container) {
	if err := a.unpacked(container); err != nil {
		o.absent = append(o.absent, "image: "+err.Error())
		return
	}
	o.addImage(ctx, a.images, container)
}

// spell makes the selectors of all claims.
func (o *outcome) spell() error {
	selectors, err := o.claims.Selectors()
	if err != nil {
		return refused(err)
	}
	for _, s := range selectors {
		o.selectors = append(o.selectors, s.String())
	}
	return nil
}

func refused(err error) error { return fmt.Errorf("%w: %w", errRefused, err) }

// runtimeError tells a call that failed from an answer that is refused: the former carries a gRPC status.
func runtimeError(err error) error {
	var call interface{ GRPCStatus() *status.Status }
	if errors.As(err, &call) {
		return err
	}
	return refused(err)
}

func claimsOf(node string, c runtime.Container) workloadclaim.Claims {
	return workloadclaim.Claims{
		Node:           node,
		Namespace:      c.Namespace,
		PodName:        c.PodName,
		PodUID:         c.PodUID,
		Container:      c.Name,
		Privileged:     c.Privileged,
		HostPID:        c.HostPID,
		HostNetwork:    c.HostNetwork,
		HostIPC:        c.HostIPC,
		Posture:        c.Posture,
		RuntimeHandler: c.Handler,
		Sandbox:        c.Sandbox,
	}
}

// reportOf is what the runtime reports, as the levels judge it.
func reportOf(c runtime.Container) confined.Report {
	return confined.Report{
		Container: c.Name, Known: c.Reported,
		Privileged: c.Privileged, HostPID: c.HostPID, HostNetwork: c.HostNetwork, HostIPC: c.HostIPC,
		AddedCapabilities: c.AddedCapabilities, Posture: c.Posture, AppArmorRefused: c.AppArmorRefused,
		SELinuxUser: c.SELinux.User, SELinuxRole: c.SELinux.Role, SELinuxType: c.SELinux.Type,
		Sysctls: c.Sysctls, HostPorts: c.HostPorts,
	}
}

// addMounts adds that the container has something of the node that it may not have.
func (o *outcome) addMounts(mounted mounts) {
	if mounted.foreign != "" {
		o.claims.HostPath = workloadclaim.Yes
		o.absent = append(o.absent, fmt.Sprintf("runtime: %q of the node is mounted, which is not allowed (read-only, and among allowed_host_paths)", mounted.foreign))
	}
}

// lookUp asks the API about the pod; not ok where there is none to ask, or it gives no facts.
func (o *outcome) lookUp(ctx context.Context, pods *pod.Lookup) (pod.Facts, bool) {
	if pods == nil {
		return pod.Facts{}, false
	}
	facts, err := pods.Facts(ctx, o.claims.Namespace, o.claims.PodName, o.claims.PodUID)
	if err != nil {
		o.absent = append(o.absent, "sa: "+err.Error())
		return pod.Facts{}, false
	}
	return facts, true
}

// addPod adds what the API says of the pod: its service account, and what all of its containers may. mounted is what of the
// node the runtime has in this one. Without the API nothing is known of the others, and of a part of a volume not what it is a
// part of.
func (o *outcome) addPod(facts pod.Facts, c runtime.Container, mounted mounts) {
	o.claims.ServiceAccount, o.claims.RuntimeClass = facts.Account, facts.RuntimeClass
	o.owner.Account, o.owner.PullSecrets, o.asked = facts.Account, facts.PullSecrets, facts.Images
	switch {
	case len(facts.Paths.Refused) > 0:
		o.claims.HostPath = workloadclaim.Yes
	case mounted.foreign != "" || len(facts.Paths.Unknown) > 0:
	case mounted.told:
		o.claims.HostPath = workloadclaim.No
	default:
		o.absent = append(o.absent, "runtime: the container runtime names no mounts, though every kubelet asks for some")
	}
	o.addLevels(facts, reportOf(c))
}

// addLevels adds which levels the pod's spec and the runtime's report meet, and what stands in the way of the first that they
// do not.
func (o *outcome) addLevels(facts pod.Facts, report confined.Report) {
	for _, level := range []struct {
		name confined.Level
		spec confined.Judgement
		meet *workloadclaim.Fact
	}{{confined.Baseline, facts.Baseline, &o.claims.Baseline}, {confined.Restricted, facts.Restricted, &o.claims.Restricted}} {
		ran := report.Judge(level.name)
		*level.meet = confined.Meets(level.spec, ran)
		if *level.meet == workloadclaim.Yes {
			continue
		}
		for _, why := range append(level.spec.Reasons(), ran.Reasons()...) {
			o.absent = append(o.absent, fmt.Sprintf("runtime:%s: %s", level.name, why))
		}
		return
	}
}

// unpacking are containerd's snapshotters for which layers are fetched whole and held against the image's configuration before a
// container is made of them (containerd docs/snapshotters: the core ones, and fuse-overlayfs).
var unpacking = []string{"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs", "fuse-overlayfs"}

// unpacked refuses to say anything of an image whose content rests on a snapshotter that loads layers lazily (stargz, nydus, SOCI,
// overlaybd): no one has compared it with the configuration that the image's digest stands for. CRI-O does not tell.
func (a *attestor) unpacked(c runtime.Container) error {
	if c.Snapshotter == "" || slices.Contains(unpacking, c.Snapshotter) || slices.Contains(a.snapshotters, c.Snapshotter) {
		return nil
	}
	return fmt.Errorf("snapshotter %.60q may load layers lazily, without comparing them with the image's configuration: "+
		"list it in allowed_snapshotters if it is trusted with that", c.Snapshotter)
}

// maxManifests bounds the selectors image-manifest; more manifests than this with one config are no real image's.
const maxManifests = 16

// addImage adds what is proved about the image. A failure takes away only the selectors that it would have proved.
func (o *outcome) addImage(ctx context.Context, images *image.Checker, c runtime.Container) {
	if c.ImageProblem != nil {
		o.absent = append(o.absent, "image: "+c.ImageProblem.Error())
		return
	}
	result, err := images.Check(ctx, image.Running{ID: c.ImageID, Ref: c.ImageRef, Asked: cmp.Or(o.asked[c.Name], c.ImageAsked), Name: c.ImageName, Hints: c.ImageHints, Owner: o.owner})
	if err != nil {
		o.absent = append(o.absent, "image: "+err.Error())
		if c.HintsError != nil {
			o.absent = append(o.absent, "image: "+c.HintsError.Error())
		}
		return
	}
	if result.Config.IsZero() {
		// A selector says what the image is, so a list of what it may be makes none.
		o.absent = append(o.absent, fmt.Sprintf("image-config, image-manifest: the runtime reports only an index, and which of its %d images runs is not known",
			len(result.Manifests)+len(result.Unread)))
	} else {
		o.claims.Config = result.Config
		o.claims.Manifests = result.Manifests[:min(len(result.Manifests), maxManifests)]
	}
	o.claims.SignedBy = result.SignedBy
	for _, f := range result.Failures {
		o.absent = append(o.absent, "signed-by:"+f.Verifier+": "+f.Reason.Error())
	}
}

func (a *attestor) close() error {
	var problems []error
	for _, c := range a.closers {
		problems = append(problems, c())
	}
	return errors.Join(problems...)
}

// podGetter is a Kubernetes client as pod.Getter.
type podGetter struct{ client rest.Interface }

// Get implements pod.Getter. It asks for JSON, which keeps the fields that this version does not know.
func (g podGetter) Get(ctx context.Context, resource, namespace, name string) ([]byte, error) {
	return g.client.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource).Name(name).
		SetHeader("Accept", "application/json").DoRaw(ctx)
}
