// Package workloadattestor holds no code: it is the page that says how a process becomes a set of claims.
//
// A process asks the SPIRE agent for an identity; the agent hands its process ID to the plugin "keelson"
// (cmd/keelson-workloadattestor), which answers with selectors. The steps, in order:
//
//  1. procinfo pins the process (pidfd, its /proc directory, its start time) and reads which container it is in from
//     the kernel's cgroup membership alone. /proc/PID/mountinfo belongs to the process's own mount namespace, which
//     the process may forge, and is never read.
//  2. runtime asks this node's container runtime over CRI for that one container and for its pod sandbox: pod,
//     labels, image, privileges, host namespaces. The cgroup path that the runtime made for the container must be
//     the one that the kernel reports. A container that this runtime does not know has no claims: it is another
//     node's, or none.
//  3. pod reads the service account from the API's Pod object, which must be on this node and have the UID that
//     the runtime reports. CRI has no service account.
//  4. image binds what the runtime started to manifests (by the image config's digest, never by a tag) and checks
//     signatures over those manifests with the verifiers that the configuration names.
//  5. procinfo looks at the process once more: gone, replaced or moved means no claims.
//
// A broker (SPIFFE Broker API) may refer to another process, or to a pod of this node as a whole. For a pod, steps 2 to 4 are
// taken for each of its containers, and a selector of image or runtime is what all of them have.
//
// # What a missing selector means
//
// A selector is emitted only for a fact that was proved. What could not be proved (registry away, no signature, no
// verbose information from the runtime, no Pod object) is absent, so whatever policy requires it is refused.
//
// # What this does not prove
//
// Root on the node controls cgroups, the runtime and this plugin: the node attestor is what stands against that.
// A process that was attested may later run other code. Between the agent's accept of the connection and step 1
// the process ID is guarded by the agent itself, which watches its caller and checks that it is alive afterwards.
package workloadattestor
