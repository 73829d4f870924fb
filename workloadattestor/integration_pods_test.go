package workloadattestor_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// sandbox is a pod that was started over CRI.
type sandbox struct {
	number  int // of its node
	id, uid string
	config  *criv1.PodSandboxConfig
	options *criv1.NamespaceOption
}

// start starts a pod with one container over CRI as a kubelet would; privileged gives it every namespace of the host.
func (m *machine) start(ctx context.Context, number int, podName, uid, image string, privileged bool) string {
	m.t.Helper()
	return m.add(ctx, m.startSandbox(ctx, number, podName, uid, privileged), "main", image, privileged)
}

func (m *machine) startSandbox(ctx context.Context, number int, podName, uid string, privileged bool) sandbox {
	m.t.Helper()
	labels := map[string]string{"io.kubernetes.pod.namespace": "payments", "io.kubernetes.pod.name": podName, "io.kubernetes.pod.uid": uid}
	options := &criv1.NamespaceOption{Pid: criv1.NamespaceMode_CONTAINER}
	if privileged {
		options = &criv1.NamespaceOption{Pid: criv1.NamespaceMode_NODE, Network: criv1.NamespaceMode_NODE, Ipc: criv1.NamespaceMode_NODE}
	}
	config := &criv1.PodSandboxConfig{
		Metadata: &criv1.PodSandboxMetadata{Name: podName, Namespace: "payments", Uid: uid}, Labels: labels,
		Linux: &criv1.LinuxPodSandboxConfig{
			CgroupParent:    fmt.Sprintf("/keelson-wl-%d/kubepods/pod%s", os.Getpid(), uid),
			SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: options, Privileged: privileged},
		},
	}
	ran, err := m.cri(number).RunPodSandbox(ctx, &criv1.RunPodSandboxRequest{Config: config})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		err := m.nodes[number].Remove(context.Background(), ran.GetPodSandboxId())
		m.removeCgroups()
		if err != nil {
			m.t.Error(err)
		}
	})
	return sandbox{number: number, id: ran.GetPodSandboxId(), uid: uid, config: config, options: options}
}

// add starts a container in a pod.
func (m *machine) add(ctx context.Context, s sandbox, name, image string, privileged bool) string {
	m.t.Helper()
	client := m.cri(s.number)
	lastWords, err := m.nodes[s.number].LastWords(s.uid, name)
	if err != nil {
		m.t.Fatal(err)
	}
	container := &criv1.ContainerConfig{
		Mounts:   []*criv1.Mount{lastWords},
		Metadata: &criv1.ContainerMetadata{Name: name}, Image: &criv1.ImageSpec{Image: image},
		Labels: map[string]string{"io.kubernetes.container.name": name},
		Linux:  &criv1.LinuxContainerConfig{SecurityContext: node.Confine(privileged, s.options)},
	}
	for k, v := range s.config.Labels {
		container.Labels[k] = v
	}
	created, err := client.CreateContainer(ctx, &criv1.CreateContainerRequest{PodSandboxId: s.id, Config: container, SandboxConfig: s.config})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := client.StartContainer(ctx, &criv1.StartContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		m.t.Fatal(err)
	}
	return created.GetContainerId()
}

// removeCgroups takes away the empty parents that runc leaves.
func (m *machine) removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/keelson-wl-%d/kubepods/pod*", "/sys/fs/cgroup/*/keelson-wl-%d/kubepods", "/sys/fs/cgroup/*/keelson-wl-%d",
		"/sys/fs/cgroup/keelson-wl-%d/kubepods/pod*", "/sys/fs/cgroup/keelson-wl-%d/kubepods", "/sys/fs/cgroup/keelson-wl-%d"} {
		dirs, err := filepath.Glob(fmt.Sprintf(pattern, os.Getpid()))
		if err != nil {
			m.t.Error(err)
		}
		for _, dir := range dirs {
			_ = os.Remove(dir) // not empty while another pod of the test runs
		}
	}
}

func (m *machine) runPrivileged(ctx context.Context, number int) string {
	return m.start(ctx, number, "admin", "admin-uid", m.signed.Config.String(), true) // pulled by the first case
}

func (m *machine) runImported(ctx context.Context, number int) string {
	return m.start(ctx, number, "batch", "batch-uid", m.imported.config, false)
}

// importImage imports the OCI layout, so that the runtime has an image that it never pulled.
func (m *machine) importImage(ctx context.Context, t *testing.T, number int) {
	t.Helper()
	paths, err := parts.Ensure(ctx, t.Output(), "ctr") // CRI cannot import
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(m.dir, "imported.tar")
	if err := writeTar(archive, m.layout); err != nil {
		m.t.Fatal(err)
	}
	importing := exec.CommandContext(ctx, paths["ctr"], "--address", m.nodes[number].Socket, "--namespace", "k8s.io", "images", "import", "--no-unpack", "--index-name", "registry.example/keelson/layout:v1", archive)
	if out, err := importing.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	} else {
		m.t.Logf("%s", out)
	}
}

func writeTar(path, dir string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	defer func() { err = errors.Join(err, w.Close()) }()
	return fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o644, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
}

// replace starts the container "sidecar" of a pod again, from another image, as a kubelet does after a tag was moved.
func (m *machine) replace(ctx context.Context, s sandbox, container, image string) {
	m.t.Helper()
	client := m.cri(s.number)
	if _, err := client.StopContainer(ctx, &criv1.StopContainerRequest{ContainerId: container}); err != nil {
		m.t.Fatal(err)
	}
	if _, err := client.RemoveContainer(ctx, &criv1.RemoveContainerRequest{ContainerId: container}); err != nil {
		m.t.Fatal(err)
	}
	m.add(ctx, s, "sidecar", image, false)
}
