// Stand-in for the Ascend Transformer Boost library, for tests without an NPU: operations that only say their name.
// The order of the virtual functions is the interface that torch_npu was compiled against.
#include <cstdint>
#include <string>

extern "C" void sim_trace(const char* kind, const char* name);

namespace atb {

using Status = int32_t;
struct Tensor;

class Operation {
  public:
    explicit Operation(const char* name) : name_(name) {}
    virtual ~Operation() = default;
    virtual std::string GetName() const { return name_; }
    virtual Status InferShape(const void*, void*) const { return 0; }
    virtual uint32_t GetInputNum() const { return 0; }
    virtual uint32_t GetOutputNum() const { return 0; }
    virtual Status Setup(const void*, uint64_t& workspace, void*) {
        workspace = 0;
        return 0;
    }
    virtual Status Execute(const void*, uint8_t*, uint64_t, void*) {
        sim_trace("atb", name_);
        return 0;
    }

  private:
    const char* name_;
};

class Context {
  public:
    virtual ~Context() = default;
    virtual intptr_t First(...) { return 0; }
    virtual intptr_t Second(...) { return 0; }
    virtual intptr_t Third(...) { return 0; }
    virtual intptr_t Fourth(...) { return 0; }
    virtual intptr_t Fifth(...) { return 0; }
    virtual intptr_t Sixth(...) { return 0; }
    virtual intptr_t Seventh(...) { return 0; }
    virtual intptr_t Eighth(...) { return 0; }
};

Status CreateContext(Context** context) { *context = new Context; return 0; }
Status DestroyContext(Context* context) { delete context; return 0; }
Status DestroyOperation(Operation* operation) { delete operation; return 0; }

struct Utils {
    static uint64_t GetTensorSize(const Tensor&);
};
uint64_t Utils::GetTensorSize(const Tensor&) { return 0; }

template <class Param>
Status CreateOperation(const Param&, Operation**);

#define OPERATION(NAME)                                             \
    namespace infer {                                               \
    struct NAME##Param;                                             \
    }                                                               \
    template <>                                                     \
    Status CreateOperation(const infer::NAME##Param&, Operation** operation) { \
        *operation = new Operation(#NAME);                          \
        return 0;                                                   \
    }

OPERATION(Linear)
OPERATION(Elewise)
OPERATION(RmsNorm)
OPERATION(GroupTopk)
OPERATION(SelfAttention)
OPERATION(PagedAttention)
OPERATION(ReshapeAndCache)
OPERATION(Rope)

}  // namespace atb
