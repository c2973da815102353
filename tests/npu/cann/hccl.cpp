// Stand-in for HCCL, for tests without an NPU: communicators have names and ranks and move nothing. What ranks
// exchange in the tests goes through gloo, on the same memory.
#include <cstdint>
#include <cstdio>
#include <cstring>

extern "C" void sim_trace(const char* kind, const char* name);

namespace {

constexpr size_t kRootInfo = 4108;
constexpr size_t kName = 128;

struct Communicator {
    uint32_t ranks;
    uint32_t rank;
};

int opened(void** communicator, uint32_t ranks, uint32_t rank) {
    *communicator = new Communicator{ranks, rank};
    return 0;
}

int traced(const char* name) {
    sim_trace("hccl", name);
    return 0;
}

}  // namespace

extern "C" {

int HcclGetRootInfo(void* info) { std::memset(info, 1, kRootInfo); return 0; }
int HcclCommInitRootInfo(uint32_t ranks, const void*, uint32_t rank, void** communicator) {
    return opened(communicator, ranks, rank);
}
int HcclCommInitRootInfoConfig(uint32_t ranks, const void*, uint32_t rank, const void*, void** communicator) {
    return opened(communicator, ranks, rank);
}
int HcclGetCommName(void* communicator, char* name) {
    std::snprintf(name, kName, "simulated_of_%u", static_cast<Communicator*>(communicator)->ranks);
    return 0;
}
int HcclCommDestroy(void* communicator) { delete static_cast<Communicator*>(communicator); return 0; }
int HcclGetCommAsyncError(void*, int* error) { *error = 0; return 0; }
uint32_t HcclGetCommConfigCapability() { return 2; }
int HcclAllReduce(...) { return traced("AllReduce"); }
int HcclBroadcast(...) { return traced("Broadcast"); }
int HcclAllGather(...) { return traced("AllGather"); }
int HcclReduceScatter(...) { return traced("ReduceScatter"); }

}  // extern "C"
